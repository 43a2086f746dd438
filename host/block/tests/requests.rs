//! Requests on real files: what is written is read, whatever the alignment, the mode and the number of threads.
#![expect(unsafe_code, reason = "request buffers are raw memory")]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};

use cardcage_block::{
    BlockBackend, BlockError, BlockGraph, Completion, CompletionQueue, Errno, HostFile, IoBuffers, IoEngine, IoResult,
    Request, ThreadPool,
};
use proptest::prelude::*;
use serde_json::json;
use tempfile::NamedTempFile;

fn image(bytes: &[u8]) -> NamedTempFile {
    // Not in /tmp, which may be a tmpfs that knows no O_DIRECT.
    let file = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

/// A graph with one writer on the file, or none where the file system has no O_DIRECT.
fn writer(graph: &BlockGraph, path: &Path, direct: bool, discard: &str) -> Option<BlockBackend> {
    let options = json!({"driver": "file", "node-name": "f0", "filename": path, "cache": {"direct": direct},
        "discard": discard});
    match graph.add_json(&options) {
        Err(error @ BlockError::NoDirect { .. }) => {
            eprintln!("skipped: {error}");
            return None;
        }
        node => node.unwrap(),
    };
    Some(graph.attach("f0", "test", true).unwrap())
}

fn wait(backend: &BlockBackend, make: impl FnOnce(Completion) -> Request) -> IoResult {
    let (tx, rx) = mpsc::channel();
    backend.submit(make(Completion::new(move |result| tx.send(result).unwrap())));
    rx.recv().unwrap()
}

/// `bytes` in pieces of `piece` bytes.
fn buffers(bytes: &mut [u8], piece: usize) -> IoBuffers {
    let pieces = bytes.chunks_mut(piece).map(|c| (c.as_mut_ptr(), c.len()));
    // SAFETY: the tests wait for the request before they touch the bytes again.
    unsafe { IoBuffers::from_raw(pieces.collect::<Vec<_>>()) }
}

fn read(backend: &BlockBackend, offset: u64, len: usize, piece: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0xaa; len];
    let to = buffers(&mut bytes, piece);
    wait(backend, |done| Request::read(offset, to, done))?;
    Ok(bytes)
}

fn write(backend: &BlockBackend, offset: u64, bytes: &[u8], piece: usize) -> IoResult {
    let mut bytes = bytes.to_vec();
    let from = buffers(&mut bytes, piece);
    wait(backend, |done| Request::write(offset, from, false, done))
}

#[test]
fn an_odd_sized_file_reads_zeroes_up_to_its_last_sector() {
    for direct in [false, true] {
        let (file, graph) = (image(&[7; 1000]), BlockGraph::new().unwrap());
        let Some(backend) = writer(&graph, file.path(), direct, "ignore") else { continue };
        assert_eq!(backend.length(), 1024);
        let bytes = read(&backend, 512, 512, 100).unwrap();
        assert_eq!((&bytes[..488], &bytes[488..]), (&[7; 488][..], &[0; 24][..]));
        assert_eq!(read(&backend, 512, 513, 513), Err(Errno::IO));
        assert_eq!(read(&backend, u64::MAX, 2, 2), Err(Errno::IO));
    }
}

#[test]
fn a_write_to_the_odd_end_makes_the_sector_whole() {
    let (file, graph) = (image(&[7; 1000]), BlockGraph::new().unwrap());
    let backend = writer(&graph, file.path(), false, "ignore").unwrap();
    write(&backend, 1000, &[8; 24], 24).unwrap();
    let bytes = std::fs::read(file.path()).unwrap();
    assert_eq!((bytes.len(), bytes[999], bytes[1000]), (1024, 7, 8));
}

#[test]
fn direct_writes_are_refused_on_an_image_that_they_would_lengthen() {
    let (file, graph) = (image(&[0; 1536]), BlockGraph::new().unwrap());
    let options = json!({"driver": "file", "node-name": "f0", "filename": file.path(), "cache": {"direct": true}});
    let Ok(node) = graph.add_json(&options) else { return eprintln!("skipped: no O_DIRECT here") };
    if node.limits().request_alignment <= 512 {
        return eprintln!("skipped: requests of one sector are aligned here");
    }
    let error = graph.attach("f0", "d", true).unwrap_err();
    assert!(error.to_string().starts_with("Cannot get 'write' permission without 'resize'"), "{error}");
    graph.attach("f0", "d", false).unwrap();
}

#[test]
fn writes_to_read_only_nodes_and_by_readers_are_refused() {
    let (file, graph) = (image(&[0; 512]), BlockGraph::new().unwrap());
    let options = json!({"driver": "file", "node-name": "f0", "filename": file.path(), "read-only": true});
    let node = graph.add_json(&options).unwrap();
    assert_eq!(node.write_at(0, &[1]), Err(Errno::PERM));
    assert_eq!(graph.attach("f0", "d", true).unwrap_err(), BlockError::ReadOnly("f0".into()));
    let reader = graph.attach("f0", "d", false).unwrap();
    assert_eq!(write(&reader, 0, &[1], 1), Err(Errno::PERM));
    assert_eq!(wait(&reader, |done| Request::discard(0, 512, done)), Err(Errno::PERM));
    assert_eq!((reader.stats().write.failed, reader.stats().unmap.failed), (1, 1));
}

#[test]
fn more_pieces_than_one_system_call_takes_are_all_done() {
    let (file, graph) = (image(&[0; 8192]), BlockGraph::new().unwrap());
    let backend = writer(&graph, file.path(), false, "ignore").unwrap();
    let bytes: Vec<u8> = (0..8192_u32).map(|i| (i % 251) as u8).collect();
    write(&backend, 0, &bytes, 3).unwrap();
    assert_eq!(read(&backend, 0, 8192, 2).unwrap(), bytes);
}

#[test]
fn discards_free_space_only_if_the_node_says_so() {
    use std::os::unix::fs::MetadataExt;
    for (mode, freed) in [("ignore", false), ("unmap", true)] {
        let (file, graph) = (image(&[1; 1 << 20]), BlockGraph::new().unwrap());
        file.as_file().sync_all().unwrap();
        let backend = writer(&graph, file.path(), false, mode).unwrap();
        wait(&backend, |done| Request::discard(0, 1 << 20, done)).unwrap();
        let blocks = file.as_file().metadata().unwrap().blocks();
        assert_eq!(blocks == 0, freed, "{mode}: {blocks} blocks");
        assert_eq!(backend.stats().unmap.bytes, 1 << 20);
    }
}

#[test]
fn zeroes_that_are_looked_for_become_holes() {
    use std::os::unix::fs::MetadataExt;
    let (file, graph) = (image(&[1; 1 << 20]), BlockGraph::new().unwrap());
    file.as_file().sync_all().unwrap();
    let options = json!({"driver": "file", "node-name": "f0", "filename": file.path(), "discard": "unmap",
        "detect-zeroes": "unmap"});
    graph.add_json(&options).unwrap();
    let backend = graph.attach("f0", "test", true).unwrap();
    write(&backend, 0, &[0; 1 << 20], 5000).unwrap();
    assert_eq!(file.as_file().metadata().unwrap().blocks(), 0);
    let mut data = vec![0; 1 << 20];
    data[777_777] = 1;
    write(&backend, 0, &data, 5000).unwrap();
    assert_eq!(std::fs::read(file.path()).unwrap(), data);
}

#[test]
fn a_file_that_keeps_its_space_does_so_whatever_the_node_above_wants() {
    use std::os::unix::fs::MetadataExt;
    let (file, graph) = (image(&[1; 1 << 20]), BlockGraph::new().unwrap());
    file.as_file().sync_all().unwrap();
    let below = json!({"driver": "file", "filename": file.path(), "discard": "ignore"});
    let options =
        json!({"driver": "raw", "node-name": "r", "discard": "unmap", "detect-zeroes": "unmap", "file": below});
    graph.add_json(&options).unwrap();
    let backend = graph.attach("r", "test", true).unwrap();
    write(&backend, 0, &[0; 1 << 20], 1 << 20).unwrap();
    wait(&backend, |done| Request::write_zeroes(0, 1 << 20, true, done)).unwrap();
    wait(&backend, |done| Request::discard(0, 1 << 20, done)).unwrap();
    assert!(file.as_file().metadata().unwrap().blocks() >= 2048);
    assert_eq!(std::fs::read(file.path()).unwrap(), [0; 1 << 20]);
}

#[test]
fn without_write_cache_each_write_is_flushed_and_still_counted_once() {
    let (file, graph) = (image(&[0; 4096]), BlockGraph::new().unwrap());
    let backend = writer(&graph, file.path(), false, "ignore").unwrap();
    backend.set_write_cache(false);
    write(&backend, 0, &[1; 512], 512).unwrap();
    wait(&backend, Request::flush).unwrap();
    let stats = backend.stats();
    assert_eq!((stats.write.operations, stats.write.bytes, stats.flush.operations), (1, 512, 1));
    assert!(stats.write.total_time_ns > 0);
}

/// An engine whose disk is full.
struct FullDisk(ThreadPool);

impl IoEngine for FullDisk {
    fn submit(&self, file: &Arc<HostFile>, request: Request) {
        if request.op().writes() {
            return self.0.defer(Box::new(move || request.complete(Err(Errno::NOSPC))));
        }
        self.0.submit(file, request);
    }
    fn defer(&self, work: Box<dyn FnOnce() + Send>) {
        self.0.defer(work);
    }
}

#[test]
fn another_engine_can_stand_in_and_its_errors_reach_the_device() {
    let file = image(&[3; 512]);
    let graph = BlockGraph::with_engine(Arc::new(FullDisk(ThreadPool::new().unwrap())));
    let backend = writer(&graph, file.path(), false, "ignore").unwrap();
    assert_eq!(write(&backend, 0, &[1; 512], 512), Err(Errno::NOSPC));
    assert_eq!(read(&backend, 0, 512, 512).unwrap(), [3; 512]);
    let stats = backend.stats();
    assert_eq!((stats.write.failed, stats.write.operations, stats.read.operations), (1, 0, 1));
}

#[test]
fn the_hosts_errno_reaches_the_device() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use std::os::fd::AsRawFd;
    let memory = memfd_create("image", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&memory, 4096).unwrap();
    let graph = BlockGraph::new().unwrap();
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    let backend = writer(&graph, Path::new(&path), false, "ignore").unwrap();
    write(&backend, 0, &[1; 512], 512).unwrap();
    fcntl_add_seals(&memory, SealFlags::WRITE).unwrap();
    assert_eq!(write(&backend, 0, &[2; 512], 512), Err(Errno::PERM));
    assert_eq!(wait(&backend, |done| Request::write_zeroes(0, 512, false, done)), Err(Errno::PERM));
    assert_eq!(read(&backend, 0, 1, 1).unwrap(), [1]);
}

#[test]
fn drain_returns_when_all_completions_have() {
    let (file, graph) = (image(&[0; 1 << 20]), BlockGraph::new().unwrap());
    let backend = writer(&graph, file.path(), false, "ignore").unwrap();
    let queue = CompletionQueue::new().unwrap();
    let mut bytes = vec![5; 1 << 20];
    let base = bytes.as_mut_ptr();
    for token in 0..256 {
        let at = token as usize * 4096;
        // SAFETY: `bytes` is not touched before the drain.
        let from = unsafe { IoBuffers::from_raw([(base.wrapping_add(at), 4096)]) };
        backend.submit(Request::write(at as u64, from, false, queue.completion(token)));
    }
    backend.drain();
    assert_eq!((backend.in_flight(), backend.node().in_flight()), (0, 0));
    let mut ended = queue.take();
    ended.sort_by_key(|e| e.0);
    assert_eq!(ended, (0..256).map(|token| (token, Ok(()))).collect::<Vec<_>>());
    assert_eq!(std::fs::read(file.path()).unwrap(), bytes);
}

/// An engine that performs nothing before it is told to.
struct Gate(ThreadPool, Arc<Mutex<mpsc::Receiver<()>>>);

impl IoEngine for Gate {
    fn submit(&self, _file: &Arc<HostFile>, request: Request) {
        let gate = self.1.clone();
        self.0.defer(Box::new(move || {
            gate.lock().unwrap().recv().unwrap();
            request.complete(Ok(()));
        }));
    }
    fn defer(&self, work: Box<dyn FnOnce() + Send>) {
        self.0.defer(work);
    }
}

#[test]
fn an_image_stays_in_use_until_the_last_request_of_a_device_that_has_gone() {
    let (open, gate) = mpsc::channel();
    let engine = Gate(ThreadPool::new().unwrap(), Arc::new(Mutex::new(gate)));
    let (file, graph) = (image(&[0; 512]), BlockGraph::with_engine(Arc::new(engine)));
    let backend = writer(&graph, file.path(), false, "ignore").unwrap();
    backend.submit(Request::flush(Completion::new(|_| ())));
    let node = backend.node().clone();
    drop(backend);
    assert!(matches!(graph.attach("f0", "other", true), Err(BlockError::Conflict { .. })));
    assert_eq!(graph.del("f0"), Err(BlockError::NodeInUse("f0".into())));
    open.send(()).unwrap();
    node.drain();
    graph.attach("f0", "other", true).unwrap();
}

#[test]
fn threads_that_write_parts_of_the_same_blocks_do_not_undo_each_other() {
    const PART: usize = 100;
    for direct in [false, true] {
        let (file, graph) = (image(&[0; 16384]), BlockGraph::new().unwrap());
        let Some(backend) = writer(&graph, file.path(), direct, "ignore") else { continue };
        std::thread::scope(|scope| {
            for thread in 0..8_usize {
                let backend = &backend;
                scope.spawn(move || {
                    for round in 1..=20_u8 {
                        for place in (thread..160).step_by(8) {
                            write(backend, (place * PART) as u64, &[round ^ thread as u8; PART], 33).unwrap();
                        }
                    }
                });
            }
        });
        let bytes = read(&backend, 0, 160 * PART, 777).unwrap();
        for (place, part) in bytes.chunks(PART).enumerate() {
            assert_eq!(part, [20 ^ (place % 8) as u8; PART], "place {place}, direct {direct}");
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write { at: usize, len: usize, piece: usize, value: u8 },
    Zero { at: usize, len: usize, unmap: bool },
    Read { at: usize, len: usize, piece: usize },
    Flush,
}

const LEN: usize = 64 << 10;

fn step() -> impl Strategy<Value = Step> {
    let range = || prop_oneof![(0..LEN, 0..LEN / 4), (0..LEN / 512, 0..16_usize).prop_map(|(a, l)| (a * 512, l * 512))];
    let range = move || range().prop_map(|(at, len)| (at, len.min(LEN - at)));
    let piece = || prop_oneof![1..2000_usize, Just(512), Just(4096)];
    prop_oneof![
        4 => (range(), piece(), any::<u8>()).prop_map(|((at, len), piece, value)| Step::Write { at, len, piece, value }),
        2 => (range(), any::<bool>()).prop_map(|((at, len), unmap)| Step::Zero { at, len, unmap }),
        3 => (range(), piece()).prop_map(|((at, len), piece)| Step::Read { at, len, piece }),
        1 => Just(Step::Flush),
    ]
}

/// Performs the steps on an image and on plain memory, which must stay alike.
fn follows_model(steps: &[Step], direct: bool, offset: u64) {
    let (file, graph) = (image(&vec![9; LEN + offset as usize]), BlockGraph::new().unwrap());
    let cache = json!({"direct": direct});
    let below = json!({"driver": "file", "filename": file.path()});
    let options = json!({"driver": "raw", "node-name": "r", "offset": offset, "size": LEN, "cache": cache,
        "discard": "unmap", "detect-zeroes": "on", "file": below});
    match graph.add_json(&options) {
        Err(BlockError::NoDirect { .. }) => return,
        added => added.unwrap(),
    };
    let backend = graph.attach("r", "test", true).unwrap();
    let mut model = vec![9; LEN];
    for step in steps {
        match *step {
            Step::Write { at, len, piece, value } => {
                let bytes: Vec<u8> = (0..len).map(|i| value.wrapping_mul(i as u8)).collect();
                write(&backend, at as u64, &bytes, piece).unwrap();
                model[at..at + len].copy_from_slice(&bytes);
            }
            Step::Zero { at, len, unmap } => {
                wait(&backend, |done| Request::write_zeroes(at as u64, len as u64, unmap, done)).unwrap();
                model[at..at + len].fill(0);
            }
            Step::Read { at, len, piece } => {
                assert!(read(&backend, at as u64, len, piece).unwrap() == model[at..at + len], "{step:?}");
            }
            Step::Flush => wait(&backend, Request::flush).unwrap(),
        }
    }
    let mut bytes = vec![0; LEN];
    OpenOptions::new().read(true).open(file.path()).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    assert!(bytes == model, "the file differs from the model");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn random_requests_do_to_the_image_what_they_do_to_memory(
        steps in prop::collection::vec(step(), 1..40), direct: bool, shifted: bool,
    ) {
        follows_model(&steps, direct, if shifted { 1536 } else { 0 });
    }
}

//! Names, users and errors of the graph: the texts are those that QEMU's clients know.

use cardcage_block::{BlockError, BlockGraph, Drive, DriveOptions, Interface, NodeOptions};
use cardcage_options::Options;
use serde_json::json;
use tempfile::TempDir;

struct Fixture {
    graph: BlockGraph,
    dir: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f.img"), [0; 4096]).unwrap();
        Self { graph: BlockGraph::new().unwrap(), dir }
    }

    fn path(&self) -> String {
        self.dir.path().join("f.img").to_str().unwrap().to_owned()
    }

    fn blockdev(&self, text: &str) -> Result<String, String> {
        let text = text.replace("F.IMG", &self.path());
        let options = NodeOptions::from_options(Options::parse("", &text, Some("driver")).unwrap());
        let node = options.map_err(|e| e.to_string())?;
        self.graph.add(node).map(|node| node.name().to_owned()).map_err(|e| e.to_string())
    }

    fn drive(&self, text: &str) -> Result<Drive, String> {
        let text = text.replace("F.IMG", &self.path());
        let options = Options::parse("-drive", &text, None).unwrap();
        let options = DriveOptions::from_options(options).map_err(|e| e.to_string())?;
        self.graph.add_drive(options).map_err(|e| e.to_string())
    }

    fn names(&self) -> Vec<String> {
        self.graph.nodes().iter().map(|info| info.node.name().to_owned()).collect()
    }
}

fn refused<T>(result: Result<T, BlockError>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn nodes_that_cannot_be_made_say_why_in_qemus_words() {
    let f = Fixture::new();
    f.blockdev("file,node-name=f0,filename=F.IMG").unwrap();
    f.drive("file=F.IMG,format=raw,if=none,id=d0").unwrap();
    let cases = [
        ("file,node-name=f0,filename=F.IMG", "Duplicate nodes with node-name='f0'"),
        ("file,node-name=d0,filename=F.IMG", "node-name=d0 is conflicting with a device id"),
        ("file,node-name=f1,filename=nofile", "Could not open 'nofile': No such file or directory"),
        ("file,node-name=1q,filename=F.IMG", "Invalid node-name: '1q'"),
        ("raw,node-name=r0,file=nonode", "Cannot find device='nonode' nor node-name='nonode'"),
        ("file,filename=F.IMG", "'node-name' must be specified for the root node"),
        (
            "raw,node-name=r0,file=f0,offset=4097",
            "Offset (4097) cannot be greater than size of the containing file (4096)",
        ),
        (
            "raw,node-name=r0,file=f0,offset=1024,size=3584",
            "The sum of offset (1024) and size (3584) has to be smaller or equal to the actual size of the containing \
             file (4096)",
        ),
        (
            "file,node-name=a2345678901234567890123456789012,filename=F.IMG",
            "Node name too long: 'a2345678901234567890123456789012' has more than 31 characters",
        ),
        (
            "file,node-name=f1,filename=/dev/null",
            "'file' driver requires '/dev/null' to be a regular file or a block device",
        ),
        ("file,node-name=f1,filename=/", "Could not open '/': Is a directory"),
    ];
    for (text, error) in cases {
        assert_eq!(f.blockdev(text), Err(error.to_owned()), "{text}");
    }
    assert_eq!(f.drive("file=F.IMG,format=raw,id=d0").unwrap_err(), "Duplicate ID 'd0' for drive");
    let text = "Device name 'f0' conflicts with an existing node name";
    assert_eq!(f.drive("file=F.IMG,format=raw,id=f0").unwrap_err(), text);
}

#[test]
fn a_tree_that_fails_half_way_leaves_nothing() {
    let f = Fixture::new();
    f.blockdev("raw,node-name=r,offset=1G,file.driver=file,file.node-name=f,file.filename=F.IMG").unwrap_err();
    f.blockdev("raw,node-name=f,file.driver=file,file.node-name=f,file.filename=F.IMG").unwrap_err();
    assert!(f.names().is_empty());
    f.blockdev("raw,node-name=r,file.driver=file,file.node-name=f,file.filename=F.IMG").unwrap();
    assert_eq!(f.names(), ["f", "r"]);
}

#[test]
fn nodes_in_use_cannot_be_removed() {
    let f = Fixture::new();
    f.blockdev("file,node-name=f0,filename=F.IMG").unwrap();
    f.blockdev("raw,node-name=q0,file=f0").unwrap();
    let device = f.graph.attach("q0", "disk", true).unwrap();
    assert_eq!(refused(f.graph.del("q0")), "Node q0 is in use");
    assert_eq!(refused(f.graph.del("f0")), "Block device f0 is in use");
    assert_eq!(refused(f.graph.del("zz")), "Failed to find node with node-name='zz'");
    drop(device);
    f.graph.del("q0").unwrap();
    f.graph.del("f0").unwrap();
    assert!(f.names().is_empty());
}

#[test]
fn nested_nodes_go_with_their_parent_and_not_before() {
    let f = Fixture::new();
    f.blockdev("raw,node-name=r,file.driver=raw,file.node-name=m,file.file.driver=file,file.file.filename=F.IMG")
        .unwrap();
    assert_eq!(f.names().len(), 3);
    assert_eq!(refused(f.graph.del("m")), "Node m is not owned by the monitor");
    f.graph.del("r").unwrap();
    assert!(f.names().is_empty());
}

#[test]
fn two_writers_conflict_also_through_other_nodes() {
    let f = Fixture::new();
    f.blockdev("file,node-name=f0,filename=F.IMG").unwrap();
    f.blockdev("raw,node-name=r0,file=f0").unwrap();
    f.blockdev("raw,node-name=r1,file=f0").unwrap();
    let first = f.graph.attach("r0", "disk0", true).unwrap();
    assert_eq!(
        refused(f.graph.attach("r0", "disk1", true)),
        "Permission conflict on node 'r0': permissions 'write' are both required by block device 'disk0' (uses node \
         'r0' as 'root' child) and unshared by block device 'disk1' (uses node 'r0' as 'root' child)."
    );
    assert_eq!(
        refused(f.graph.attach("r1", "disk1", true)),
        "Permission conflict on node 'f0': permissions 'write' are both required by node 'r0' (uses node 'f0' as \
         'file' child) and unshared by node 'r1' (uses node 'f0' as 'file' child)."
    );
    drop(first);
    let users: Vec<_> = f.graph.nodes().into_iter().map(|info| info.users).collect();
    assert_eq!(users, [vec!["node 'r0'".to_owned(), "node 'r1'".to_owned()], vec![], vec![]]);
    f.graph.attach("r1", "disk1", true).unwrap();
}

#[test]
fn a_failed_attach_leaves_nobody_attached() {
    let f = Fixture::new();
    f.blockdev("file,node-name=f0,filename=F.IMG,read-only=on").unwrap();
    f.blockdev("raw,node-name=r0,file=f0").unwrap();
    assert_eq!(refused(f.graph.attach("r0", "disk", true)), "Block node 'f0' is read-only");
    assert!(f.graph.backends().is_empty());
    f.graph.del("r0").unwrap();
}

#[test]
fn drives_are_found_by_id_and_hand_on_their_write_cache() {
    let f = Fixture::new();
    let drive = f.drive("file=F.IMG,format=raw,if=virtio,cache=writethrough").unwrap();
    assert_eq!((drive.id.as_str(), drive.interface), ("virtio0", Some(Interface::Virtio)));
    assert_eq!(refused(f.graph.del(&drive.node_name)), format!("Node {} is in use", drive.node_name));
    let disk = f.graph.attach("virtio0", "/machine/disk", true).unwrap();
    assert!(!disk.write_cache() && !disk.is_read_only());
    let info = &f.graph.backends()[0];
    assert_eq!((info.device.as_str(), info.drive.as_deref()), ("/machine/disk", Some("virtio0")));
    assert_eq!(disk.node().filename(), Some(f.path()));
    assert_eq!(f.drive("file=F.IMG,format=raw,if=virtio").unwrap().id, "virtio1");
}

#[test]
fn nodes_do_not_pile_up_without_end() {
    let f = Fixture::new();
    f.blockdev("file,node-name=n0,filename=F.IMG").unwrap();
    let add = |i: usize| {
        f.graph.add_json(&json!({"driver": "raw", "node-name": format!("n{i}"), "file": format!("n{}", i - 1)}))
    };
    let made = (1..200).take_while(|&i| add(i).is_ok()).count();
    assert_eq!(made, 64);
    let error = refused(add(made + 1));
    assert_eq!(error, "Block node 'n64' already lies on top of 64 others: no further node can go on top of it");
    let disk = f.graph.attach("n64", "disk", true).unwrap();
    disk.node().write_at(0, &[1; 512]).unwrap();
}

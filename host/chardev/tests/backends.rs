//! Chardevs with real files, sockets and ptys on the other side.

mod ear;

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::time::Duration;

use cardcage_chardev::{Bridge, Chardevs, Event};
use ear::{LIMIT, add, bytes, ear, event, pair, read};

#[test]
fn output_goes_to_the_file_before_the_chardev_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    std::fs::write(&path, "old\n").unwrap();
    for (append, expected) in [("on", "old\nnew\n"), ("off", "new\n")] {
        let chardevs = Chardevs::new();
        let file = add(&chardevs, &format!("file,id=f,path={},append={append}", path.display())).unwrap();
        let (handle, _ear, heard) = ear(&file, 0);
        event(&heard, Event::Opened);
        assert_eq!(handle.write(b"new\n"), 4);
        chardevs.close_all();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    }
}

#[test]
fn output_without_anybody_there_is_taken_and_dropped() {
    let (chardevs, dir) = (Chardevs::new(), tempfile::tempdir().unwrap());
    let path = dir.path().join("s");
    let socket = add(&chardevs, &format!("socket,id=s,path={},server=on,wait=off", path.display())).unwrap();
    let (handle, _ear, heard) = ear(&socket, 100);
    assert_eq!(handle.write(&[7; 200_000]), 200_000);
    for name in [b"one", b"two"] {
        let client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        event(&heard, Event::Opened);
        handle.write(name);
        assert_eq!(read(&client, 3), name);
        (&client).write_all(name).unwrap();
        assert_eq!(bytes(&heard, 3), name);
        drop(client);
        event(&heard, Event::Closed);
    }
    chardevs.close_all();
    assert!(!path.exists(), "the socket's path stays behind");
}

#[test]
fn a_server_that_waits_is_there_when_somebody_has_come() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let client = std::thread::spawn({
        let path = path.clone();
        move || loop {
            match UnixStream::connect(&path) {
                Ok(stream) => return stream,
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    });
    let chardevs = Chardevs::new();
    let socket = add(&chardevs, &format!("socket,id=s,path={},server=on", path.display())).unwrap();
    let (_handle, _ear, heard) = ear(&socket, 100);
    event(&heard, Event::Opened);
    client.join().unwrap().write_all(b"hi").unwrap();
    assert_eq!(bytes(&heard, 2), b"hi");
}

#[test]
fn a_socket_path_that_is_served_is_refused_and_a_dead_one_taken_over() {
    let (chardevs, dir) = (Chardevs::new(), tempfile::tempdir().unwrap());
    let path = dir.path().join("s");
    let other = UnixListener::bind(&path).unwrap();
    let text = format!("socket,id=s,path={},server=on,wait=off", path.display());
    let error = add(&chardevs, &text).unwrap_err().to_string();
    assert_eq!(error, format!("Failed to listen on '{}': Address already in use", path.display()));
    drop(other);
    add(&chardevs, &text).unwrap();
    UnixStream::connect(&path).unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    add(&chardevs, &format!("socket,id=t,path={},server=on,wait=off", file.display())).unwrap_err();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn a_client_connects_at_once_or_as_soon_as_somebody_listens() {
    let (chardevs, dir) = (Chardevs::new(), tempfile::tempdir().unwrap());
    let path = dir.path().join("s");
    let error = add(&chardevs, &format!("socket,id=a,path={}", path.display())).unwrap_err().to_string();
    assert_eq!(error, format!("Failed to connect to '{}': No such file or directory", path.display()));
    let client = add(&chardevs, &format!("socket,id=b,path={},reconnect-ms=10", path.display())).unwrap();
    let (_handle, _ear, heard) = ear(&client, 100);
    let listener = UnixListener::bind(&path).unwrap();
    for _ in 0..2 {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello").unwrap();
        assert_eq!(bytes(&heard, 5), b"hello");
        drop(stream);
        event(&heard, Event::Closed);
    }
}

#[test]
fn tcp_servers_tell_the_port_that_the_host_chose() {
    let chardevs = Chardevs::new();
    let socket = add(&chardevs, "socket,id=t,host=127.0.0.1,port=0,server=on,wait=off,nodelay=on").unwrap();
    let address = socket.filename().strip_prefix("tcp:").unwrap();
    let mut client = std::net::TcpStream::connect(address).unwrap();
    let (_handle, _ear, heard) = ear(&socket, 100);
    client.write_all(b"hi").unwrap();
    assert_eq!(bytes(&heard, 2), b"hi");
}

#[test]
fn a_pty_is_open_while_a_program_has_it_and_hands_on_bytes_as_they_are() {
    let chardevs = Chardevs::new();
    let pty = add(&chardevs, "pty,id=p").unwrap();
    let (handle, ear, heard) = ear(&pty, 100);
    for _ in 0..2 {
        *ear.room.lock().unwrap() = 100;
        let mut other = OpenOptions::new().read(true).write(true).open(pty.pty_path().unwrap()).unwrap();
        event(&heard, Event::Opened);
        assert_eq!(handle.write(b"a\n\x03b"), 4);
        let mut got = [0; 4];
        other.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"a\n\x03b");
        other.write_all(b"\x03\r\n").unwrap();
        assert_eq!(bytes(&heard, 3), b"\x03\r\n");
        drop(other);
        event(&heard, Event::Closed);
    }
}

#[test]
fn a_ring_buffer_keeps_the_last_bytes() {
    let chardevs = Chardevs::new();
    let ring = add(&chardevs, "ringbuf,id=r,size=4").unwrap();
    let (handle, _ear, _heard) = ear(&ring, 0);
    assert_eq!(handle.write(b"abcdef"), 6);
    assert_eq!(ring.ring_read(3).unwrap(), b"cde");
    ring.ring_write(b"xy").unwrap();
    assert_eq!(ring.ring_read(100).unwrap(), b"fxy");
    let null = add(&chardevs, "null,id=n").unwrap();
    assert_eq!(null.ring_read(1).unwrap_err().to_string(), "n is not a ringbuf device");
}

#[test]
fn a_bridge_makes_a_stream_of_each_connection() {
    let (chardevs, dir) = (Chardevs::new(), tempfile::tempdir().unwrap());
    let path = dir.path().join("s");
    let socket = add(&chardevs, &format!("socket,id=s,path={},server=on,wait=off", path.display())).unwrap();
    let (tx, streams) = mpsc::channel();
    let bridge = Bridge::attach(&socket, move |stream| tx.send(stream).unwrap()).unwrap();
    for _ in 0..2 {
        let client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        let stream: UnixStream = streams.recv_timeout(LIMIT).unwrap();
        stream.set_nonblocking(false).unwrap();
        let sent: Vec<u8> = (0..300_000_u32).map(|i| (i % 249) as u8).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| (&stream).write_all(&sent).unwrap());
            scope.spawn(|| (&client).write_all(&sent).unwrap());
            let from_client = scope.spawn(|| read(&stream, sent.len()));
            assert!(read(&client, sent.len()) == sent);
            assert!(from_client.join().unwrap() == sent);
        });
        drop(client);
        assert_eq!((&stream).read(&mut [0; 1]).unwrap(), 0, "the stream ends with the connection");
    }
    drop(bridge);
    assert!(!socket.is_attached());
    chardevs.remove("s").unwrap();
}

#[test]
fn what_was_written_before_the_end_of_a_bridged_stream_is_sent() {
    let chardevs = Chardevs::new();
    let (chardev, theirs) = pair(&chardevs, false);
    let (tx, streams) = mpsc::channel();
    let _bridge = Bridge::attach(&chardev, move |stream| tx.send(stream).unwrap()).unwrap();
    let mut stream: UnixStream = streams.recv_timeout(LIMIT).unwrap();
    stream.write_all(b"goodbye").unwrap();
    drop(stream);
    assert_eq!(read(&theirs, 7), b"goodbye");
}

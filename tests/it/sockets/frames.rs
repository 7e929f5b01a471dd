//! Floods of HTTP/2 frames: what the library counts and ends, seen from outside.

use crate::cluster::Cluster;
use crate::sockets::connect;
use crate::sockets::exchange;
use crate::sockets::is_well;
use crate::sockets::pour;
use tokio::io::AsyncWriteExt;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Bytes of a flood that nobody stops.
const FLOOD_BYTES: usize = 64 << 20;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The preface and settings that every client opens with.
fn opening() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, b"")].concat()
}

/// HPACK of a call: indexed fields and literals without Huffman coding.
fn call_headers() -> Vec<u8> {
    let path = b"/etcdserverpb.KV/Range";
    let mut block = vec![0x83, 0x86, 0x04, path.len() as u8];
    block.extend_from_slice(path);
    block.extend_from_slice(b"\x01\x01h");
    block.extend_from_slice(b"\x00\x0ccontent-type\x10application/grpc");
    block
}

/// An entry of 4,000 bytes in the dynamic table, and then that entry 16,000 times in one block.
fn bomb() -> Vec<u8> {
    let mut block = call_headers();
    block.extend_from_slice(b"\x40\x01b\x7f");
    // 4000 as an HPACK integer with a prefix of seven bits.
    block.extend_from_slice(&[0xa1, 0x1e]);
    block.extend_from_slice(&[b'x'; 4000]);
    block.extend_from_slice(&[0xbe; 12_000]);
    block
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_hurt_nobody_else() {
    let mut cluster = Cluster::ours(1, &[]).await;
    let port = cluster.members[0].client_port;
    let request = call_headers();
    let mut stream = 1;
    let mut next = || {
        stream += 2;
        stream
    };
    let resets: Vec<u8> = (0..200_000)
        .flat_map(|_| {
            let stream = next();
            [frame(HEADERS, END_HEADERS, stream, &request), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
        })
        .collect();
    let bombs: Vec<u8> = (0..500).flat_map(|_| frame(HEADERS, END_HEADERS, next(), &bomb())).collect();
    let continued = [frame(HEADERS, 0, 1, &request), frame(CONTINUATION, 0, 1, &[b'x'; 16_000]).repeat(200)].concat();
    let empty_continued = [frame(HEADERS, 0, 1, &request), frame(CONTINUATION, 0, 1, b"").repeat(200_000)].concat();
    let table_sizes = frame(SETTINGS, 0, 0, &[0, 1, 0xff, 0xff, 0xff, 0xff]).repeat(200_000);
    let windows = frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]).repeat(2);
    for (what, flood) in [
        ("rapid reset", resets),
        ("HPACK bombs", bombs),
        ("CONTINUATION without end", continued),
        ("empty CONTINUATION without end", empty_continued),
        ("SETTINGS", table_sizes),
        ("windows beyond their size", windows),
        ("a frame longer than allowed", [&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1][..], &[0; 1 << 20]].concat()),
        ("DATA on a stream that never was", frame(0, 0, 99, b"data")),
        ("HEADERS on stream 0", frame(HEADERS, END_HEADERS, 0, &request)),
        ("an even stream", frame(HEADERS, END_HEADERS, 2, &request)),
        ("a pad longer than the frame", frame(HEADERS, END_HEADERS | 8, 1, &[0xff, 1, 2])),
        ("an index that is nothing", frame(HEADERS, END_HEADERS, 1, &[0xff, 0xff, 0xff, 0xff, 0x7f])),
        ("a SETTINGS of five bytes", frame(SETTINGS, 0, 0, &[1, 2, 3, 4, 5])),
        ("zeros", vec![0; 1 << 20]),
        ("a PING of nine bytes", frame(PING, 0, 0, &[0; 9])),
    ] {
        let mut socket = connect(port).await;
        // Nobody reads what comes back.
        let _ = socket.write_all(&opening()).await;
        let taken = pour(&mut socket, &flood, flood.len()).await;
        println!("{what}: {taken} of {} bytes were taken", flood.len());
        is_well(&mut cluster.members[0], what).await;
    }
    // Without end, and without reading the answers.
    for (what, piece) in [
        ("PING", frame(PING, 0, 0, &[7; 8]).repeat(1000)),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9]).repeat(1000)),
        ("an unknown frame", frame(0x77, 0, 0, &[7; 1000]).repeat(50)),
    ] {
        let mut socket = connect(port).await;
        socket.write_all(&opening()).await.expect("sent");
        let taken = pour(&mut socket, &piece, FLOOD_BYTES).await;
        println!("{what}: {taken} bytes were taken");
        is_well(&mut cluster.members[0], what).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_breaks_the_protocol_ends_its_connection() {
    let mut cluster = Cluster::ours(1, &[]).await;
    let port = cluster.members[0].client_port;
    for (what, wrong) in [
        ("a frame longer than allowed", vec![0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]),
        ("HEADERS on stream 0", frame(HEADERS, END_HEADERS, 0, &call_headers())),
        ("a SETTINGS of five bytes", frame(SETTINGS, 0, 0, &[1, 2, 3, 4, 5])),
        ("windows beyond their size", frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ("an index that is nothing", frame(HEADERS, END_HEADERS, 1, &[0xff, 0xff, 0xff, 0xff, 0x7f])),
    ] {
        // Fails when the connection stays open.
        exchange(port, &[opening(), wrong].concat()).await;
        is_well(&mut cluster.members[0], what).await;
    }
}

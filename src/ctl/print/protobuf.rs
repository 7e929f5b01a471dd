//! The `protobuf` format: the response's own bytes, with nothing before or behind.

use std::io;
use std::io::Write;

use prost::Message;

use super::Report;
use super::lease;
use crate::proto::etcdserverpb::WatchResponse;

pub fn write(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    let bytes = match report {
        Report::Put(response) => response.encode_to_vec(),
        Report::Get { response, .. } => response.encode_to_vec(),
        Report::Delete(response) => response.encode_to_vec(),
        Report::Txn(response) => response.encode_to_vec(),
        Report::Lease(report) => lease::protobuf(report),
        // The id on the stream and the reason are not part of what etcd's client hands on.
        Report::Watch(response) => {
            let (watch_id, cancel_reason, fragment) = (0, String::new(), false);
            let header = Some(response.header.unwrap_or_default());
            WatchResponse { watch_id, cancel_reason, fragment, header, ..(*response).clone() }.encode_to_vec()
        }
        Report::MemberList(response) => response.encode_to_vec(),
        Report::MemberAdd { response, .. } => response.encode_to_vec(),
        Report::MemberRemove { response, .. } => response.encode_to_vec(),
        Report::MemberUpdate { response, .. } => response.encode_to_vec(),
        Report::MemberPromote { response, .. } => response.encode_to_vec(),
        Report::MoveLeader { response, .. } => response.encode_to_vec(),
        // Not in the support matrix: these are lists made here, no message of the API.
        Report::Status(_) | Report::Health(_) | Report::HashKv(_) => Vec::new(),
    };
    out.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn bytes_are_the_message_without_newline() {
        let mut out = Vec::new();
        let put = samples::put_with_prev();
        write(&Report::Put(&put), &mut out).expect("a Vec takes everything");
        assert_eq!(out, put.encode_to_vec());
        assert_eq!(out[..3], [0x0a, 0x1a, 0x08]);
    }
}

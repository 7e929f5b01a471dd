//! The `fields` format: `"Name" : value`, one a line.

use std::io;
use std::io::Write;

use super::EndpointHash;
use super::EndpointHealth;
use super::EndpointStatus;
use super::Report;
use super::lease;
use super::simple;
use crate::ctl::go_text::quote;
use crate::proto::etcdserverpb::DeleteRangeResponse;
use crate::proto::etcdserverpb::Member;
use crate::proto::etcdserverpb::MemberListResponse;
use crate::proto::etcdserverpb::PutResponse;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::ResponseHeader;
use crate::proto::etcdserverpb::TxnResponse;
use crate::proto::etcdserverpb::WatchResponse;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::mvccpb::KeyValue;

pub fn write(report: &Report<'_>, hex: bool, out: &mut dyn Write) -> io::Result<()> {
    let mut fields = Fields { hex, out };
    match report {
        Report::Put(response) => fields.put(response),
        Report::Get { response, .. } => fields.range(response),
        Report::Delete(response) => fields.delete(response),
        Report::Txn(response) => fields.txn(response),
        Report::Lease(report) => {
            fields.header(report.header())?;
            lease::fields(report, hex, fields.out)
        }
        Report::Watch(response) => fields.watch(response),
        Report::MemberList(response) => fields.members(response),
        // Not in the support matrix.
        Report::MemberAdd { .. }
        | Report::MemberRemove { .. }
        | Report::MemberUpdate { .. }
        | Report::MemberPromote { .. }
        | Report::MoveLeader { .. } => Ok(()),
        Report::Status(list) => list.iter().try_for_each(|found| fields.status(found)),
        Report::Health(list) => list.iter().try_for_each(|found| fields.health(found)),
        Report::HashKv(list) => list.iter().try_for_each(|found| fields.hash(found)),
    }
}

struct Fields<'a> {
    hex: bool,
    out: &'a mut dyn Write,
}

impl Fields<'_> {
    fn line(&mut self, name: &str, value: impl std::fmt::Display) -> io::Result<()> {
        writeln!(self.out, "\"{name}\" : {value}")
    }

    /// A cluster or member id: decimal, or hex without padding under `--hex`.
    fn id(&mut self, name: &str, id: u64) -> io::Result<()> {
        if self.hex { self.line(name, format_args!("{id:x}")) } else { self.line(name, id) }
    }

    fn header(&mut self, header: Option<&ResponseHeader>) -> io::Result<()> {
        let header = header.cloned().unwrap_or_default();
        self.id("ClusterID", header.cluster_id)?;
        self.id("MemberID", header.member_id)?;
        if header.revision != 0 {
            self.line("Revision", header.revision)?;
        }
        self.line("RaftTerm", header.raft_term)
    }

    fn pair(&mut self, prefix: &str, kv: &KeyValue) -> io::Result<()> {
        self.line(&format!("{prefix}Key"), quote(&kv.key))?;
        self.line(&format!("{prefix}CreateRevision"), kv.create_revision)?;
        self.line(&format!("{prefix}ModRevision"), kv.mod_revision)?;
        self.line(&format!("{prefix}Version"), kv.version)?;
        self.line(&format!("{prefix}Value"), quote(&kv.value))?;
        let name = format!("{prefix}Lease");
        if self.hex { self.line(&name, format_args!("{:016x}", kv.lease)) } else { self.line(&name, kv.lease) }
    }

    fn put(&mut self, response: &PutResponse) -> io::Result<()> {
        self.header(response.header.as_ref())?;
        response.prev_kv.iter().try_for_each(|kv| self.pair("Prev", kv))
    }

    fn range(&mut self, response: &RangeResponse) -> io::Result<()> {
        self.header(response.header.as_ref())?;
        response.kvs.iter().try_for_each(|kv| self.pair("", kv))?;
        self.line("More", response.more)?;
        self.line("Count", response.count)
    }

    fn delete(&mut self, response: &DeleteRangeResponse) -> io::Result<()> {
        self.header(response.header.as_ref())?;
        self.line("Deleted", response.deleted)?;
        response.prev_kvs.iter().try_for_each(|kv| self.pair("Prev", kv))
    }

    fn txn(&mut self, response: &TxnResponse) -> io::Result<()> {
        self.header(response.header.as_ref())?;
        self.line("Succeeded", response.succeeded)?;
        response.responses.iter().try_for_each(|op| match &op.response {
            Some(Response::ResponseRange(nested)) => self.range(nested),
            Some(Response::ResponsePut(nested)) => self.put(nested),
            Some(Response::ResponseDeleteRange(nested)) => self.delete(nested),
            Some(Response::ResponseTxn(nested)) => self.txn(nested),
            None => Ok(()),
        })
    }

    fn watch(&mut self, response: &WatchResponse) -> io::Result<()> {
        self.header(response.header.as_ref())?;
        response.events.iter().try_for_each(|event| {
            self.line("Type", simple::event_type(event))?;
            event.prev_kv.iter().try_for_each(|kv| self.pair("Prev", kv))?;
            event.kv.iter().try_for_each(|kv| self.pair("", kv))
        })
    }

    fn members(&mut self, response: &MemberListResponse) -> io::Result<()> {
        self.header(response.header.as_ref())?;
        response.members.iter().try_for_each(|member| self.member(member))
    }

    fn member(&mut self, member: &Member) -> io::Result<()> {
        self.id("ID", member.id)?;
        self.line("Name", quote(member.name.as_bytes()))?;
        member.peer_ur_ls.iter().try_for_each(|url| self.line("PeerURL", quote(url.as_bytes())))?;
        member.client_ur_ls.iter().try_for_each(|url| self.line("ClientURL", quote(url.as_bytes())))?;
        self.line("IsLearner", member.is_learner)?;
        writeln!(self.out)
    }

    fn status(&mut self, found: &EndpointStatus) -> io::Result<()> {
        let status = &found.status;
        let downgrade = status.downgrade_info.clone().unwrap_or_default();
        self.header(status.header.as_ref())?;
        self.line("Version", quote(status.version.as_bytes()))?;
        self.line("StorageVersion", quote(status.storage_version.as_bytes()))?;
        self.line("DBSize", status.db_size)?;
        self.line("DBSizeInUse", status.db_size_in_use)?;
        self.line("DBSizeQuota", status.db_size_quota)?;
        // Decimal even under --hex.
        self.line("Leader", status.leader)?;
        self.line("IsLearner", status.is_learner)?;
        self.line("RaftIndex", status.raft_index)?;
        // A second time behind the header's, as 3.7.1 has it.
        self.line("RaftTerm", status.raft_term)?;
        self.line("RaftAppliedIndex", status.raft_applied_index)?;
        self.line("Errors", format_args!("[{}]", status.errors.join(" ")))?;
        self.line("Endpoint", quote(found.endpoint.as_bytes()))?;
        self.line("DowngradeTargetVersion", quote(downgrade.target_version.as_bytes()))?;
        self.line("DowngradeEnabled", downgrade.enabled)?;
        writeln!(self.out)
    }

    fn health(&mut self, found: &EndpointHealth) -> io::Result<()> {
        self.line("Endpoint", quote(found.endpoint.as_bytes()))?;
        self.line("Health", found.healthy)?;
        self.line("Took", &found.took)?;
        self.line("Error", &found.error)?;
        writeln!(self.out)
    }

    fn hash(&mut self, found: &EndpointHash) -> io::Result<()> {
        self.header(found.hash.header.as_ref())?;
        self.line("Endpoint", quote(found.endpoint.as_bytes()))?;
        self.line("Hash", found.hash.hash)?;
        self.line("HashRevision", found.hash.hash_revision)?;
        writeln!(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::super::samples;
    use super::*;

    const HEADER: &str = "\"ClusterID\" : 12101053776118486841\n\"MemberID\" : 15985099378392235387\n";

    fn check(report: Report<'_>, hex: bool, expected: &str) {
        assert_eq!(samples::printed(&report, Format::Fields, hex), expected);
    }

    #[test]
    fn key_values_have_their_fields() {
        check(
            Report::Put(&samples::put_with_prev()),
            false,
            &format!(
                "{HEADER}\"Revision\" : 20\n\"RaftTerm\" : 2\n\"PrevKey\" : \"w\"\n\"PrevCreateRevision\" : 16\n\
                 \"PrevModRevision\" : 19\n\"PrevVersion\" : 4\n\"PrevValue\" : \"val2\"\n\"PrevLease\" : 0\n"
            ),
        );
        check(
            Report::Get { response: &samples::one_pair(), value_only: false },
            true,
            "\"ClusterID\" : a7ef944b95711739\n\"MemberID\" : ddd67b312462fd7b\n\"Revision\" : 22\n\"RaftTerm\" : 2\n\
             \"Key\" : \"k1\"\n\"CreateRevision\" : 9\n\"ModRevision\" : 9\n\"Version\" : 1\n\"Value\" : \"v1\"\n\
             \"Lease\" : 0000000000000000\n\"More\" : false\n\"Count\" : 1\n",
        );
        let deleted = DeleteRangeResponse { header: samples::header(26), deleted: 0, prev_kvs: Vec::new() };
        check(
            Report::Delete(&deleted),
            false,
            &format!("{HEADER}\"Revision\" : 26\n\"RaftTerm\" : 2\n\"Deleted\" : 0\n"),
        );
    }

    #[test]
    fn a_txn_repeats_headers_inside() {
        let inner =
            |revision| format!("\"ClusterID\" : 0\n\"MemberID\" : 0\n\"Revision\" : {revision}\n\"RaftTerm\" : 0\n");
        let expected = format!(
            "{HEADER}\"Revision\" : 52\n\"RaftTerm\" : 2\n\"Succeeded\" : true\n{}\"Key\" : \"x\"\n\
             \"CreateRevision\" : 9\n\"ModRevision\" : 9\n\"Version\" : 1\n\"Value\" : \"2\"\n\"Lease\" : 0\n\
             \"More\" : false\n\"Count\" : 1\n{}{}\"Deleted\" : 1\n",
            inner(51),
            inner(52),
            inner(52)
        );
        check(Report::Txn(&samples::txn()), false, &expected);
    }

    #[test]
    fn members_and_endpoints_end_in_an_empty_line() {
        check(
            Report::MemberList(&samples::members()),
            false,
            &format!(
                "{HEADER}\"RaftTerm\" : 2\n\"ID\" : 443629905751424238\n\"Name\" : \"m3\"\n\
                 \"PeerURL\" : \"http://127.0.0.1:32380\"\n\"ClientURL\" : \"http://127.0.0.1:32379\"\n\
                 \"IsLearner\" : false\n\n\"ID\" : 12945674029963271922\n\"Name\" : \"\"\n\
                 \"PeerURL\" : \"http://127.0.0.1:42380\"\n\"IsLearner\" : true\n\n"
            ),
        );
        check(
            Report::Status(&samples::status()),
            false,
            &format!(
                "{HEADER}\"Revision\" : 70\n\"RaftTerm\" : 2\n\"Version\" : \"3.7.1\"\n\"StorageVersion\" : \"3.7.0\"\n\
                 \"DBSize\" : 24576\n\"DBSizeInUse\" : 16384\n\"DBSizeQuota\" : 2147483648\n\
                 \"Leader\" : 15985099378392235387\n\"IsLearner\" : false\n\"RaftIndex\" : 112\n\"RaftTerm\" : 2\n\
                 \"RaftAppliedIndex\" : 112\n\"Errors\" : []\n\"Endpoint\" : \"127.0.0.1:12379\"\n\
                 \"DowngradeTargetVersion\" : \"\"\n\"DowngradeEnabled\" : false\n\n"
            ),
        );
        check(
            Report::HashKv(&samples::hashes()),
            false,
            &format!(
                "{HEADER}\"Revision\" : 2\n\"RaftTerm\" : 2\n\"Endpoint\" : \"127.0.0.1:12379\"\n\
                 \"Hash\" : 3305255506\n\"HashRevision\" : 2\n\n"
            ),
        );
        check(
            Report::Health(&samples::health()[..1]),
            false,
            "\"Endpoint\" : \"127.0.0.1:12379\"\n\"Health\" : true\n\"Took\" : 2.467018ms\n\"Error\" : \n\n",
        );
    }
}

//! `elect`: stands for election and leads until a signal comes, or shows who leads (ctl.md 5.3).

use bytes::Bytes;

use super::command::Action;
use super::command::Command;
use super::error::CtlError;
use super::flags::Flag;
use super::flags::Kind;
use super::session::Session;
use super::turn;
use super::turn::Turn;
use crate::client::Client;
use crate::common::concurrency::DEFAULT_TTL_SECONDS;
use crate::common::concurrency::Leader;
use crate::common::concurrency::Queue;
use crate::proto::etcdserverpb::RangeResponse;

pub static COMMAND: Command = Command {
    name: "elect",
    arguments: "<election-name> [proposal]",
    summary: "Stands for election, or shows who leads",
    flags: &[Flag::new("listen", Kind::Bool, "", "only show who leads").with_short('l')],
    inherited: &[],
    action: Action::Run(run),
};

fn run(session: &mut Session<'_>) -> Result<(), CtlError> {
    let (name, proposal) = match &session.args[..] {
        [name] => (name.clone(), None),
        [name, proposal] => (name.clone(), Some(proposal.clone())),
        _ => {
            let needs = "elect takes one election name argument and an optional proposal argument";
            return Err(CtlError::bad_arguments(needs));
        }
    };
    // Before the rest is looked at, as etcdctl does.
    let client = session.connect()?;
    match (proposal, session.values.bool("listen")) {
        (None, true) => observe(session, &client, &Queue::new(&name)),
        (Some(proposal), false) => campaign(session, &client, &Queue::new(&name), proposal),
        (None, false) => Err(CtlError::bad_arguments("no proposal argument but -l not set")),
        (Some(_), true) => Err(CtlError::bad_arguments("proposal given but -l is set")),
    }
}

fn campaign(session: &mut Session<'_>, client: &Client, queue: &Queue, proposal: Bytes) -> Result<(), CtlError> {
    let mut turn = Turn::begin(session, client, DEFAULT_TTL_SECONDS)?;
    let standing = queue.stand(client, turn.lease.lease(), proposal);
    let (place, _) = session.wait(turn.take(queue, standing))?;
    let response = turn.read(session, &place)?;
    turn::show(session, &response)?;
    session.wait(turn.hold("elect: session expired"))?;
    session.wait(turn.leave(&place))
}

fn observe(session: &mut Session<'_>, client: &Client, queue: &Queue) -> Result<(), CtlError> {
    let mut turn = Turn::begin(session, client, DEFAULT_TTL_SECONDS)?;
    let mut observer = queue.observe();
    loop {
        let happened = async {
            tokio::select! {
                biased;
                () = turn.signals.come() => None,
                leader = observer.next(client) => Some(leader),
            }
        };
        let Some(leader) = session.wait(turn.lease.during(happened)) else { return Ok(()) };
        let Ok(Leader { header, kv }) = leader else { return Err(CtlError::failed("elect: observer lost")) };
        let response = RangeResponse { header: Some(header), kvs: vec![kv], ..RangeResponse::default() };
        turn::show(session, &response)?;
    }
}

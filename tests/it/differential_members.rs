//! The same random changes of the membership, good and bad, asked of ours and of the real etcd 3.5.1: equal answers.
//!
//! Ids differ, and so do ports and who leads: a member has one name for both sides. `QUORATE_DIFFERENTIAL_STEPS` and
//! `QUORATE_DIFFERENTIAL_SEED` make a longer run, or another one, by hand.

use std::collections::BTreeMap;

use quorate::proto::etcdserverpb::Member as ProtoMember;
use quorate::proto::etcdserverpb::MemberAddRequest;
use quorate::proto::etcdserverpb::MemberListRequest;
use quorate::proto::etcdserverpb::MemberPromoteRequest;
use quorate::proto::etcdserverpb::MemberRemoveRequest;
use quorate::proto::etcdserverpb::MemberUpdateRequest;
use quorate::proto::etcdserverpb::MoveLeaderRequest;
use quorate::proto::etcdserverpb::ResponseHeader;
use quorate::proto::etcdserverpb::cluster_client::ClusterClient;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tonic::Code;
use tonic::Status;
use tonic::transport::Channel;

use crate::cluster::Cluster;
use crate::cluster::Program;
use crate::cluster::put;
use crate::differential_gen::Random;
use crate::members_work::peer_url;
use crate::oracle::oracle;
use crate::support::eventually;
use crate::support::from_environment;

/// Steps of one run in the ordinary test run.
const STEPS: usize = 300;

/// Peer URLs that a member that never runs may be given.
const FREE: [&str; 5] =
    ["http://localhost:1", "http://localhost:2", "https://localhost:3", "http://localhost:4", "https://localhost:5"];

/// What no member may have.
const BAD: [&str; 7] = [
    "",
    "bogus",
    "127.0.0.1:1",
    "http://127.0.0.1",
    "http://127.0.0.1:1/path",
    "ftp://127.0.0.1:1",
    "http://127.0.0.1:x",
];

/// A member that runs has the name of a position, one that was added the number of its addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Running(usize),
    Added(usize),
    Nobody(u64),
}

/// A peer URL, of somebody or free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Address {
    /// The one a member that runs was started with.
    Of(usize),
    /// Another name of the same.
    AlsoOf(usize),
    /// Never used before. An id is made of the URLs and the second (server.md 6.1): with other ones than those of an
    /// earlier addition, it never depends on the clock whether the id is taken.
    Fresh(usize),
    Text(&'static str),
}

#[derive(Clone, Debug)]
enum Step {
    Add { urls: Vec<Address>, learner: bool },
    Remove(Who),
    Promote(Who),
    Update(Who, Vec<Address>),
    MoveLeader(Who),
    List { linearizable: bool },
}

/// Makes steps that leave both sides with a quorum and with members that are what they seem on both.
struct Generator {
    random: Random,
    running: usize,
    /// Which of those that run leads.
    leader: usize,
    added: usize,
    /// URLs that were used.
    fresh: usize,
    /// The one member that never ran, if there is one now.
    extra: Option<Extra>,
}

#[derive(Clone, Copy, Debug)]
struct Extra {
    who: Who,
    url: Address,
    is_learner: bool,
    /// Its address was changed: a 3.5.1 takes it for a voter now (B47).
    is_updated: bool,
}

impl Generator {
    /// The next step, and through whom of those that run.
    fn step(&mut self) -> (usize, Step) {
        let through = if self.random.one_in(2) { self.leader } else { self.any_running() };
        let step = match (self.extra, self.random.below(100)) {
            (Some(extra), _) if extra.is_updated => Step::Remove(extra.who),
            // With a vote that is never given, 3.5.1 refuses what ours takes as long as there is a quorum (B46).
            (Some(Extra { is_learner: false, who, .. }), 0..60) => Step::Remove(who),
            (Some(Extra { is_learner: false, .. }), 60..80) => Step::List { linearizable: self.random.one_in(2) },
            (Some(Extra { is_learner: false, .. }), _) => Step::Add { urls: self.bad_urls(), learner: false },
            (_, 0..30) => self.addition(),
            (_, 30..50) => Step::Remove(self.removable()),
            (_, 50..63) => Step::Promote(self.anybody()),
            (_, 63..78) => self.update(),
            (_, 78..88) => Step::MoveLeader(self.anybody()),
            _ => Step::List { linearizable: self.random.one_in(2) },
        };
        // A follower of 3.5.1 asks its leader again and again for a member that was removed, until its time is over.
        let is_gone = |who: &Who| matches!(who, Who::Added(_)) && self.extra.is_none_or(|extra| extra.who != *who);
        let through = if matches!(&step, Step::Promote(who) if is_gone(who)) { self.leader } else { through };
        (through, step)
    }

    fn any_running(&mut self) -> usize {
        self.random.below(self.running as u64) as usize
    }

    /// Sometimes one that was never there, or is there no more.
    fn stranger(&mut self) -> Who {
        match self.added {
            0 => Who::Nobody(self.random.pick(&[0, 1, u64::MAX])),
            _ if self.random.one_in(3) => Who::Nobody(self.random.pick(&[0, 1, u64::MAX])),
            // The one that is there now may be among them.
            added => Who::Added(self.random.below(added as u64) as usize),
        }
    }

    fn anybody(&mut self) -> Who {
        match self.extra {
            Some(extra) if self.random.one_in(2) => extra.who,
            _ if self.random.one_in(2) => Who::Running(self.any_running()),
            _ => self.stranger(),
        }
    }

    /// Not one that runs, unless it is alone and therefore stays.
    fn removable(&mut self) -> Who {
        match self.extra {
            Some(extra) if self.random.one_in(2) => extra.who,
            _ if self.running == 1 && self.random.one_in(3) => Who::Running(0),
            _ => self.stranger(),
        }
    }

    fn addition(&mut self) -> Step {
        // Alone, another voter would be the end of the quorum; and one extra is enough.
        let learner = self.running == 1 || self.extra.is_some() || !self.random.one_in(3);
        let urls = match self.random.below(10) {
            0..2 => self.bad_urls(),
            2..4 => {
                let taken = Address::Of(self.any_running());
                if self.random.one_in(2) { vec![taken] } else { vec![self.fresh(), taken] }
            }
            4 => Vec::new(),
            5 => vec![self.fresh(), self.fresh()],
            6 => {
                let twice = self.fresh();
                vec![twice, twice]
            }
            7 if self.extra.is_some() => {
                let taken = self.extra.map_or(Address::Of(0), |extra| extra.url);
                vec![self.fresh(), taken]
            }
            _ => vec![self.fresh()],
        };
        // Whatever has a bad or a taken one among them is refused for a voter, too.
        let refused = urls.iter().any(|url| !matches!(url, Address::Fresh(_)));
        Step::Add { urls, learner: if refused { self.random.one_in(2) } else { learner } }
    }

    fn fresh(&mut self) -> Address {
        self.fresh += 1;
        Address::Fresh(self.fresh)
    }

    fn free(&mut self) -> Address {
        Address::Text(self.random.pick(&FREE))
    }

    fn bad_urls(&mut self) -> Vec<Address> {
        let bad = Address::Text(self.random.pick(&BAD));
        if self.random.one_in(2) { vec![bad] } else { vec![self.free(), bad] }
    }

    /// Of one that runs only to what it can be reached at. Never to what is no URL: a 3.5.1 takes it, and all others end.
    fn update(&mut self) -> Step {
        match self.extra {
            Some(extra) if self.random.one_in(2) => {
                let urls = match self.random.below(4) {
                    0 => vec![Address::Of(self.any_running())],
                    1 => vec![self.free(), self.free()],
                    _ => vec![self.free()],
                };
                Step::Update(extra.who, urls)
            }
            _ if self.random.one_in(2) => {
                let at = self.any_running();
                let urls = match self.random.below(4) {
                    0 => vec![Address::AlsoOf(at), Address::Of(at)],
                    1 => vec![Address::Of(at), Address::AlsoOf(at)],
                    2 if self.running > 1 => vec![Address::Of(at), Address::Of((at + 1) % self.running)],
                    _ => vec![Address::Of(at)],
                };
                Step::Update(Who::Running(at), urls)
            }
            _ => Step::Update(self.stranger(), vec![self.free()]),
        }
    }

    /// What a step that was answered with success has changed.
    fn succeeded(&mut self, step: &Step) {
        match step {
            Step::Add { learner, urls } => {
                let (who, url) = (Who::Added(self.added), urls[0]);
                self.extra = Some(Extra { who, url, is_learner: *learner, is_updated: false });
                self.added += 1;
            }
            Step::Remove(who) if self.extra.is_some_and(|extra| extra.who == *who) => self.extra = None,
            Step::Update(who, _) => {
                if let Some(extra) = self.extra.as_mut().filter(|extra| extra.who == *who && extra.is_learner) {
                    extra.is_updated = true;
                }
            }
            Step::MoveLeader(Who::Running(at)) => self.leader = *at,
            _ => {}
        }
    }
}

/// One of the two, with its own ids and addresses.
struct Side {
    cluster: Cluster,
    channels: Vec<Channel>,
    ids: BTreeMap<Who, u64>,
    /// From the side's positions to names, so that the leader has the same name on both sides.
    turn: usize,
}

/// A member without what differs from side to side.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shown {
    who: Who,
    name: String,
    peer_urls: Vec<String>,
    client_urls: Vec<String>,
    is_learner: bool,
}

/// An answer without what differs from side to side.
type Told = Result<Vec<Shown>, (Code, String)>;

impl Side {
    /// A member that leads has the name 0.
    async fn start(program: Program, count: usize) -> Side {
        let cluster = Cluster::start(&vec![program; count], &["--unsafe-no-fsync"]).await;
        let turn = cluster.leader().await;
        let mut side = Side { cluster, channels: Vec::new(), ids: BTreeMap::new(), turn };
        for at in 0..count {
            let member = &side.cluster.members[side.position(at)];
            let (id, channel) = (member.id().await, member.connect().await.expect("a connection"));
            side.ids.insert(Who::Running(at), id);
            side.channels.push(channel);
        }
        side
    }

    /// Where the member of this name is.
    fn position(&self, at: usize) -> usize {
        (at + self.turn) % self.cluster.members.len()
    }

    fn id(&self, who: Who) -> u64 {
        match who {
            Who::Nobody(id) => id,
            known => self.ids[&known],
        }
    }

    fn url(&self, address: Address) -> String {
        match address {
            Address::Of(at) => peer_url(&self.cluster.members[self.position(at)]),
            Address::AlsoOf(at) => self.url(Address::Of(at)).replace("127.0.0.1", "localhost"),
            // Nobody listens there.
            Address::Fresh(number) => format!("http://127.0.0.1:{}", number % 1000 + 1),
            Address::Text(text) => text.to_owned(),
        }
    }

    fn urls(&self, addresses: &[Address]) -> Vec<String> {
        addresses.iter().map(|address| self.url(*address)).collect()
    }

    /// Waits until all who run agree that this one leads, which it does unless the machine hardly let it run.
    async fn led_by(&self, at: usize) {
        let target_id = self.id(Who::Running(at));
        eventually("the right one to lead", async || {
            let leader = self.cluster.leader().await;
            if leader == self.position(at) {
                return Ok(());
            }
            let channel = self.cluster.members[leader].connect().await.map_err(|status| status.to_string())?;
            let moved = MaintenanceClient::new(channel).move_leader(MoveLeaderRequest { target_id }).await;
            Err(self.cluster.logs(&format!("{moved:?}")))
        })
        .await;
    }

    async fn take(&mut self, through: usize, step: &Step, added: usize) -> Told {
        let channel = self.channels[through].clone();
        let mut client = ClusterClient::new(channel.clone());
        let answer = match step.clone() {
            Step::Add { urls, learner } => {
                let request = MemberAddRequest { peer_ur_ls: self.urls(&urls), is_learner: learner };
                client.member_add(request).await.map(|answer| {
                    let answer = answer.into_inner();
                    let new = answer.member.expect("the new member");
                    self.ids.insert(Who::Added(added), new.id);
                    assert!(answer.members.contains(&new), "{new:?} is not among {:?}", answer.members);
                    (answer.header, answer.members)
                })
            }
            Step::Remove(who) => {
                let answer = client.member_remove(MemberRemoveRequest { id: self.id(who) }).await;
                answer.map(tonic::Response::into_inner).map(|answer| (answer.header, answer.members))
            }
            Step::Promote(who) => {
                let answer = client.member_promote(MemberPromoteRequest { id: self.id(who) }).await;
                answer.map(tonic::Response::into_inner).map(|answer| (answer.header, answer.members))
            }
            Step::Update(who, urls) => {
                let request = MemberUpdateRequest { id: self.id(who), peer_ur_ls: self.urls(&urls) };
                let answer = client.member_update(request).await;
                answer.map(tonic::Response::into_inner).map(|answer| (answer.header, answer.members))
            }
            Step::List { linearizable } => {
                let answer = client.member_list(MemberListRequest { linearizable }).await;
                answer.map(tonic::Response::into_inner).map(|answer| (answer.header, answer.members))
            }
            Step::MoveLeader(who) => {
                let request = MoveLeaderRequest { target_id: self.id(who) };
                let answer = MaintenanceClient::new(channel).move_leader(request).await;
                answer.map(|_| (Some(self.header(through)), Vec::new()))
            }
        };
        self.told(through, answer)
    }

    /// What the headers of a member are made of.
    fn header(&self, through: usize) -> ResponseHeader {
        ResponseHeader { member_id: self.id(Who::Running(through)), raft_term: 1, ..ResponseHeader::default() }
    }

    fn told(&self, through: usize, answer: Result<(Option<ResponseHeader>, Vec<ProtoMember>), Status>) -> Told {
        let (header, members) = answer.map_err(|status| (status.code(), status.message().to_owned()))?;
        let header = header.expect("a header");
        assert_eq!((header.member_id, header.revision), (self.id(Who::Running(through)), 0), "{header:?}");
        assert_ne!(header.raft_term, 0, "{header:?}");
        assert!(members.windows(2).all(|pair| pair[0].id < pair[1].id), "not in the order of ids: {members:?}");
        let mut shown: Vec<Shown> = members.into_iter().map(|member| self.shown(member)).collect();
        shown.sort();
        Ok(shown)
    }

    fn shown(&self, member: ProtoMember) -> Shown {
        let who = self.ids.iter().find(|(_, id)| **id == member.id);
        let who = who.map(|(who, _)| *who).unwrap_or_else(|| panic!("{member:?} is none of {:?}", self.ids));
        let known: Vec<(String, String)> = (0..self.cluster.members.len())
            .flat_map(|at| {
                let running = &self.cluster.members[self.position(at)];
                [
                    (running.peer_port.to_string(), format!("PEER{at}")),
                    (running.client_port.to_string(), format!("CLIENT{at}")),
                ]
            })
            .collect();
        let plain = |text: String| known.iter().fold(text, |text, (port, name)| text.replace(port, name));
        let name = match self.cluster.members.iter().position(|running| running.name == member.name) {
            Some(position) => {
                format!("started at {}", (0..).find(|at| self.position(*at) == position).unwrap_or(usize::MAX))
            }
            None => member.name,
        };
        Shown {
            who,
            name,
            peer_urls: member.peer_ur_ls.into_iter().map(plain).collect(),
            client_urls: member.client_ur_ls.into_iter().map(plain).collect(),
            is_learner: member.is_learner,
        }
    }
}

/// A 3.5.1 makes a voter of a learner whose address is changed (B47).
fn without_role(told: Told, who: Who) -> Told {
    told.map(|members| {
        members
            .into_iter()
            .map(|member| if member.who == who { Shown { is_learner: false, ..member } } else { member })
            .collect()
    })
}

async fn run(test: &str, count: usize, seed: u64, steps: usize) {
    let Some(real) = oracle(test) else { return };
    let etcd = Program::Etcd(real.etcd.clone());
    let (mut ours, mut theirs) = tokio::join!(Side::start(Program::Ours, count), Side::start(etcd, count));
    let random = Random::new(seed);
    let mut generator = Generator { random, running: count, leader: 0, added: 0, fresh: 0, extra: None };
    for side in [&ours, &theirs] {
        until_changes_are_taken(side).await;
    }
    let mut successes = 0;
    for number in 0..steps {
        let (through, step) = generator.step();
        let told = async |side: &mut Side| {
            if count > 1 {
                side.led_by(generator.leader).await;
            }
            let told = side.take(through, &step, generator.added).await;
            separate(side, generator.leader).await;
            told
        };
        let (mut mine, mut real) = tokio::join!(told(&mut ours), told(&mut theirs));
        if let Step::Update(who, _) = &step {
            (mine, real) = (without_role(mine, *who), without_role(real, *who));
        }
        let logs = || ours.cluster.logs("ours") + &theirs.cluster.logs("\ntheirs");
        assert_eq!(
            mine,
            real,
            "ours left, etcd right; seed {seed}, step {number} through {through}: {step:?}{}",
            logs()
        );
        if mine.is_ok() {
            generator.succeeded(&step);
            successes += 1;
        }
    }
    assert!(successes * 5 > steps, "only {successes} of {steps} steps had a success to compare");
}

/// A 3.5.1 drops a change that comes right behind another one (etcd 15528): an entry goes between.
async fn separate(side: &Side, leader: usize) {
    let mut leader = KvClient::new(side.channels[leader].clone());
    put(&mut leader, "between", "").await.expect("a put");
}

/// A member must have been connected to the others for five seconds.
async fn until_changes_are_taken(side: &Side) {
    for channel in &side.channels {
        eventually("changes to be taken", async || {
            let taken = MemberAddRequest { peer_ur_ls: vec![side.url(Address::Of(0))], is_learner: true };
            let answer = ClusterClient::new(channel.clone()).member_add(taken).await;
            separate(side, 0).await;
            match answer {
                Err(status) if status.code() == Code::FailedPrecondition => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_changes_of_one_members_cluster_are_answered_as_etcd_answers_them() {
    let test = "random_changes_of_one_members_cluster_are_answered_as_etcd_answers_them";
    let steps = from_environment("QUORATE_DIFFERENTIAL_STEPS", STEPS as u64) as usize;
    run(test, 1, from_environment("QUORATE_DIFFERENTIAL_SEED", 1), steps).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_changes_of_three_members_are_answered_as_etcd_answers_them() {
    let test = "random_changes_of_three_members_are_answered_as_etcd_answers_them";
    let steps = from_environment("QUORATE_DIFFERENTIAL_STEPS", STEPS as u64 / 2) as usize;
    run(test, 3, from_environment("QUORATE_DIFFERENTIAL_SEED", 2), steps).await;
}

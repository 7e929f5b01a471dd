//! The same random requests to a member of ours and to the real etcd 3.5.1: equal answers, equal errors, equal hashes.
//!
//! `QUORATE_DIFFERENTIAL_STEPS` and `QUORATE_DIFFERENTIAL_SEED` make a longer run, or another one, by hand.

use quorate::proto::etcdserverpb::HashKvRequest;
use quorate::proto::etcdserverpb::HashKvResponse;
use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tonic::Code;
use tonic::Status;
use tonic::transport::Channel;

use crate::cluster::Cluster;
use crate::cluster::Program;
use crate::differential_gen::Generator;
use crate::differential_gen::Step;
use crate::differential_gen::normal_range;
use crate::differential_gen::normal_txn;
use crate::differential_gen::only_revision;
use crate::oracle::oracle;
use crate::support::from_environment;

/// Steps of one run in the ordinary test run; several seeds make up some ten thousand requests.
const STEPS: usize = 4000;

/// What a step was answered, in a form that compares.
#[derive(Debug, PartialEq)]
struct Outcome {
    answer: Result<String, (Code, String)>,
    /// Header revision of a success.
    revision: Option<i64>,
}

struct Side {
    cluster: Cluster,
    kv: KvClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
}

impl Side {
    async fn start(program: Program) -> Side {
        let cluster = Cluster::start(&[program], &["--unsafe-no-fsync"]).await;
        let channel = cluster.members[0].connect().await.expect("a connection");
        Side { cluster, kv: KvClient::new(channel.clone()), maintenance: MaintenanceClient::new(channel) }
    }

    async fn restart(&mut self) {
        self.cluster.members[0].terminate();
        self.cluster.members[0].start();
        self.cluster.wait_ready().await;
        let channel = self.cluster.members[0].connect().await.expect("a connection");
        self.kv = KvClient::new(channel.clone());
        self.maintenance = MaintenanceClient::new(channel);
    }

    async fn take(&mut self, step: &Step) -> Outcome {
        match step {
            Step::Range(request) => {
                let answer = self.kv.range(request.clone()).await;
                outcome(answer.map(|response| normal_range(request, response.into_inner())), |r| r.header)
            }
            Step::Put(request) => {
                let answer = self.kv.put(request.clone()).await.map(tonic::Response::into_inner);
                let answer = answer.map(|mut response| {
                    response.header = only_revision(response.header);
                    response
                });
                outcome(answer, |r| r.header)
            }
            Step::Delete(request) => {
                let answer = self.kv.delete_range(request.clone()).await.map(tonic::Response::into_inner);
                let answer = answer.map(|mut response| {
                    response.header = only_revision(response.header);
                    response
                });
                outcome(answer, |r| r.header)
            }
            Step::Txn(request) => {
                let answer = self.kv.txn(request.clone()).await;
                outcome(answer.map(|response| normal_txn(request, response.into_inner())), |r| r.header)
            }
            Step::Compact(request) => {
                let answer = self.kv.compact(*request).await.map(tonic::Response::into_inner);
                let answer = answer.map(|mut response| {
                    response.header = only_revision(response.header);
                    response
                });
                outcome(answer, |r| r.header)
            }
            Step::HashKv(revision) => {
                let request = HashKvRequest { revision: *revision };
                let answer = self.maintenance.hash_kv(request).await.map(tonic::Response::into_inner);
                // 3.5.1 has no hash_revision.
                let answer = answer.map(|response| HashKvResponse {
                    header: only_revision(response.header),
                    hash_revision: 0,
                    ..response
                });
                outcome(answer, |r| r.header)
            }
            Step::Restart => {
                self.restart().await;
                Outcome { answer: Ok(String::new()), revision: None }
            }
        }
    }
}

fn outcome<T: std::fmt::Debug>(
    answer: Result<T, Status>,
    header: impl Fn(&T) -> Option<quorate::proto::etcdserverpb::ResponseHeader>,
) -> Outcome {
    match answer {
        Ok(response) => {
            let revision = header(&response).map(|header| header.revision);
            Outcome { answer: Ok(format!("{response:?}")), revision }
        }
        Err(status) => Outcome { answer: Err((status.code(), status.message().to_owned())), revision: None },
    }
}

async fn run(test: &str, seed: u64, steps: usize, restarts: bool) {
    let Some(real) = oracle(test) else { return };
    let mut ours = Side::start(Program::Ours).await;
    let mut theirs = Side::start(Program::Etcd(real.etcd.clone())).await;
    let mut generator = Generator::new(seed, restarts);
    for number in 0..steps {
        let step = generator.step();
        if matches!(step, Step::Restart) {
            // 3.5.1 forgets the newest revisions at a restart when they were compacted tombstones (reliability.md B4).
            let anchor = Step::Put(PutRequest { key: "anchor".into(), ..PutRequest::default() });
            let delete = Step::Delete(quorate::proto::etcdserverpb::DeleteRangeRequest {
                key: "anchor".into(),
                ..Default::default()
            });
            for extra in [&anchor, &delete, &anchor] {
                assert_eq!(ours.take(extra).await, theirs.take(extra).await, "seed {seed} before restart {number}");
            }
        }
        let mine = ours.take(&step).await;
        let real = theirs.take(&step).await;
        if both_fail_the_pre_check(&step, &mine, &real) {
            continue;
        }
        assert_eq!(mine, real, "ours left, etcd right; seed {seed}, step {number}: {step:?}");
        if let Some(revision) = mine.revision {
            generator.revision = revision;
            if let Step::Compact(request) = &step {
                generator.compacted.push(request.revision);
            }
        }
    }
}

/// A transaction with more than one mistake in it: 3.7 reports the first in the order of operations, the lease of a put
/// before its key (server.md 3.7); 3.5.1 looks at all puts first, the key before the lease.
fn both_fail_the_pre_check(step: &Step, mine: &Outcome, real: &Outcome) -> bool {
    const REASONS: [&str; 4] = [
        "etcdserver: requested lease not found",
        "etcdserver: key not found",
        "etcdserver: mvcc: required revision has been compacted",
        "etcdserver: mvcc: required revision is a future revision",
    ];
    let fails = |outcome: &Outcome| matches!(&outcome.answer, Err((_, text)) if REASONS.contains(&text.as_str()));
    matches!(step, Step::Txn(_)) && fails(mine) && fails(real)
}

#[tokio::test]
async fn random_requests_are_answered_as_etcd_answers_them() {
    let steps = from_environment("QUORATE_DIFFERENTIAL_STEPS", STEPS as u64) as usize;
    let seed = from_environment("QUORATE_DIFFERENTIAL_SEED", 1);
    run("random_requests_are_answered_as_etcd_answers_them", seed, steps, false).await;
}

#[tokio::test]
async fn random_requests_with_restarts_are_answered_as_etcd_answers_them() {
    let steps = from_environment("QUORATE_DIFFERENTIAL_STEPS", STEPS as u64) as usize;
    let seed = from_environment("QUORATE_DIFFERENTIAL_SEED", 2);
    run("random_requests_with_restarts_are_answered_as_etcd_answers_them", seed, steps, true).await;
}

#[tokio::test]
async fn another_seed_is_answered_as_etcd_answers_it() {
    run("another_seed_is_answered_as_etcd_answers_it", 3, STEPS, true).await;
}

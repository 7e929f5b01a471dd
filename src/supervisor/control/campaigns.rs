//! What takes its time and is told line by line: chaos, and a rolling restart. One at a time.
//!
//! Whoever asked and hangs up ends it: chaos takes everything back then, a rolling restart goes no further.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Frame;
use serde::Deserialize;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::sync::OwnedMutexGuard;
use tokio::sync::mpsc;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use crate::supervisor::chaos;
use crate::supervisor::chaos::ChaosRequest;
use crate::supervisor::chaos::Told;
use crate::supervisor::control::http_server::is_over;
use crate::supervisor::control::vocabulary::Handle;
use crate::supervisor::control::vocabulary::Requester;
use crate::supervisor::journal::Journal;
use crate::supervisor::journal::What;
use crate::supervisor::links::Links;
use crate::supervisor::members::Member;
use crate::supervisor::rolling;
use crate::supervisor::rolling::RollingRequest;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A line of the answer. The last one is `Ended`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "progress")]
pub enum Progress {
    Chaos(Told),
    Restart { text: String },
    Ended { error: Option<String> },
}

/// With whom and what it is done.
pub struct Scene {
    pub handle: Handle,
    pub members: Vec<Member>,
    pub links: Option<Links>,
    pub journal: Journal,
    pub by: Requester,
    /// The supervisor ends.
    pub stop: watch::Receiver<bool>,
}

/// Keeps them apart.
#[derive(Debug, Default)]
pub struct Campaigns(Arc<Mutex<()>>);

impl Campaigns {
    /// Begins chaos; `None` while something else runs.
    pub fn chaos(&self, scene: Scene, request: ChaosRequest) -> Option<Body> {
        let alone = Arc::clone(&self.0).try_lock_owned().ok()?;
        let (stop, stopped) = watch::channel(false);
        let Scene { handle, members, links, journal, by, stop: ending } = scene;
        Some(begin(alone, ending, |lines| async move {
            let tell = |told: Told| {
                note(&journal, &told);
                // Whoever asked may have hung up.
                let _ = lines.send(Progress::Chaos(told));
            };
            let mut run = std::pin::pin!(chaos::run(&handle, &members, links.as_ref(), &request, by, stopped, tell));
            tokio::select! {
                ended = &mut run => return ended,
                () = lines.closed() => {}
            }
            // Nobody listens any more: everything is taken back, which takes its time.
            let _ = stop.send(true);
            run.await
        }))
    }

    /// Begins a rolling restart; `None` while something else runs.
    pub fn rolling(&self, scene: Scene, request: RollingRequest) -> Option<Body> {
        let alone = Arc::clone(&self.0).try_lock_owned().ok()?;
        let Scene { handle, members, journal, by, stop: ending, .. } = scene;
        Some(begin(alone, ending, |lines| async move {
            let tell = |text: String| {
                journal.record(None, What::Fault { kind: "rolling-restart".to_owned(), detail: text.clone() });
                // Whoever asked may have hung up.
                let _ = lines.send(Progress::Restart { text });
            };
            tokio::select! {
                ended = rolling::restart(&handle, &members, &request, by, tell) => ended,
                () = lines.closed() => Ok(()),
            }
        }))
    }
}

fn note(journal: &Journal, told: &Told) {
    let (kind, detail) = (told.kind.clone(), told.text.trim_end_matches(':').to_owned());
    let what = if told.healed { What::Healed { kind, detail } } else { What::Fault { kind, detail } };
    match told.names.as_slice() {
        [] => journal.record(None, what),
        names => names.iter().for_each(|name| journal.record(Some(name), what.clone())),
    }
}

/// Lets it run, whoever listens, and gives its lines as a body. They are as many as faults were planned, which is bounded.
fn begin<F: Future<Output = Result<(), String>> + Send + 'static>(
    alone: OwnedMutexGuard<()>,
    ending: watch::Receiver<bool>,
    run: impl FnOnce(UnboundedSender<Progress>) -> F,
) -> Body {
    let (sender, receiver) = mpsc::unbounded_channel();
    let work = run(sender.clone());
    tokio::spawn(async move {
        let error = work.await.err();
        // Whoever asked may have hung up.
        let _ = sender.send(Progress::Ended { error });
        drop(alone);
    });
    let lines = stream::unfold((receiver, ending), |(mut receiver, mut ending)| async move {
        let progress = tokio::select! {
            biased;
            progress = receiver.recv() => progress?,
            () = is_over(&mut ending) => return None,
        };
        // Our own types have no keys that are not texts, which is all that could fail.
        let mut bytes = serde_json::to_vec(&progress).unwrap_or_default();
        bytes.push(b'\n');
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(bytes))), (receiver, ending)))
    });
    StreamBody::new(lines).boxed_unsync()
}

//! Which processes are meant: names, patterns, `all`, and the roles of cluster members.
//!
//! Pure: who leads and what chance says are arguments. A word that names nothing is an error before anything is done.

/// What a member is in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Leader,
    Follower,
    Learner,
    /// A voter that knows no leader.
    Candidate,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Learner => "learner",
            Role::Candidate => "candidate",
        })
    }
}

/// A process that may be meant, in the order of the Procfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub name: String,
    /// Its command runs a cluster member.
    pub is_member: bool,
    /// Known only while it answers.
    pub role: Option<Role>,
}

/// Why words name no processes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("unknown process{}: {} (known: {})", if .unknown.len() == 1 { "" } else { "es" }, .unknown.join(", "), .known.join(", "))]
    Unknown { unknown: Vec<String>, known: Vec<String> },
    #[error("{0}")]
    Nobody(String),
}

/// What one word asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Selector<'a> {
    All,
    Leader,
    Followers,
    Learners,
    Minority,
    Majority,
    Random(usize),
    Pattern(&'a str),
}

impl Selector<'_> {
    fn of(word: &str) -> Selector<'_> {
        match word {
            "all" => Selector::All,
            "leader" => Selector::Leader,
            "followers" | "follower" => Selector::Followers,
            "learners" | "learner" => Selector::Learners,
            "minority" => Selector::Minority,
            "majority" => Selector::Majority,
            "random" => Selector::Random(1),
            _ => match word.strip_prefix("random:").map(str::parse) {
                Some(Ok(count)) => Selector::Random(count),
                _ => Selector::Pattern(word),
            },
        }
    }
}

/// Whether any of the words can only be understood by asking the members for their roles.
pub fn need_roles(words: &[String], known: &[Candidate]) -> bool {
    let is_name = |word: &String| known.iter().any(|candidate| candidate.name == *word);
    words.iter().filter(|word| !is_name(word)).any(|word| {
        matches!(
            Selector::of(word),
            Selector::Leader | Selector::Followers | Selector::Learners | Selector::Minority | Selector::Majority
        )
    })
}

/// The names that the words mean, each once: in the order of the words, and of the Procfile within one.
///
/// A process that has the name of a role is meant by that name. `minority` is as many voting members as may be lost,
/// followers first; `majority` is as few as are enough to lose the quorum, the leader first. `dice` gives a number
/// below its argument.
pub fn resolve(
    words: &[String],
    known: &[Candidate],
    dice: &mut dyn FnMut(usize) -> usize,
) -> Result<Vec<String>, TargetError> {
    let unknown: Vec<String> = words.iter().filter(|word| !means_something(word, known)).cloned().collect();
    if !unknown.is_empty() {
        let known = known.iter().map(|candidate| candidate.name.clone()).collect();
        return Err(TargetError::Unknown { unknown, known });
    }
    let mut names: Vec<String> = Vec::new();
    for word in words {
        for name in chosen(word, known, dice)? {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    Ok(names)
}

fn means_something(word: &str, known: &[Candidate]) -> bool {
    match Selector::of(word) {
        Selector::Pattern(pattern) => known.iter().any(|candidate| glob(pattern, &candidate.name)),
        _ => true,
    }
}

fn chosen(word: &str, known: &[Candidate], dice: &mut dyn FnMut(usize) -> usize) -> Result<Vec<String>, TargetError> {
    if known.iter().any(|candidate| candidate.name == word) {
        return Ok(vec![word.to_owned()]);
    }
    let names = |wanted: &dyn Fn(&Candidate) -> bool| -> Vec<String> {
        known.iter().filter(|candidate| wanted(candidate)).map(|candidate| candidate.name.clone()).collect()
    };
    let with_role = |role: Role| names(&|candidate| candidate.role == Some(role));
    let voters = names(&|candidate| candidate.is_member && candidate.role != Some(Role::Learner));
    let found = match Selector::of(word) {
        Selector::All => names(&|_| true),
        Selector::Leader => with_role(Role::Leader),
        Selector::Followers => with_role(Role::Follower),
        Selector::Learners => with_role(Role::Learner),
        Selector::Minority => by_rank(known, &voters, false, voters.len().saturating_sub(1) / 2),
        Selector::Majority => by_rank(known, &voters, true, voters.len() - voters.len().saturating_sub(1) / 2),
        Selector::Random(count) => random(names(&|_| true), count, dice)?,
        Selector::Pattern(pattern) => names(&|candidate| glob(pattern, &candidate.name)),
    };
    if found.is_empty() {
        return Err(TargetError::Nobody(format!("nobody is \"{word}\" now")));
    }
    Ok(found)
}

/// The first `count` voters, with the leader at the front or at the back.
fn by_rank(known: &[Candidate], voters: &[String], leader_first: bool, count: usize) -> Vec<String> {
    let leads = |name: &String| known.iter().any(|one| one.name == *name && one.role == Some(Role::Leader));
    let mut ranked = voters.to_vec();
    // Stable: the Procfile's order stays among the others.
    ranked.sort_by_key(|name| leads(name) != leader_first);
    ranked.truncate(count);
    ranked
}

fn random(
    mut names: Vec<String>,
    count: usize,
    dice: &mut dyn FnMut(usize) -> usize,
) -> Result<Vec<String>, TargetError> {
    if count == 0 || count > names.len() {
        return Err(TargetError::Nobody(format!("random:{count} of {} processes cannot be chosen", names.len())));
    }
    Ok((0..count).map(|_| names.remove(dice(names.len()) % names.len())).collect())
}

/// Whether a name fits a pattern: `*` is any text, `?` one letter, `[a-c]` and `[!a-c]` one letter of a set.
pub fn glob(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where to go on when it does not fit: behind the last star, with one letter more given to it.
    let mut back: Option<(usize, usize)> = None;
    while n < name.len() {
        match step(&pattern[p..], name[n]) {
            Some(0) => {
                back = Some((p + 1, n));
                p += 1;
            }
            Some(used) => {
                p += used;
                n += 1;
            }
            None => match back {
                Some((star, taken)) => {
                    back = Some((star, taken + 1));
                    p = star;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|letter| *letter == '*')
}

/// How much of the pattern takes this letter: 0 is a star, `None` is none.
fn step(pattern: &[char], letter: char) -> Option<usize> {
    match pattern.first()? {
        '*' => Some(0),
        '?' => Some(1),
        '[' => match set(pattern) {
            Some((members, negated, used)) => {
                let within = members.iter().any(|(low, high)| (*low..=*high).contains(&letter));
                (within != negated).then_some(used)
            }
            // A bracket that is never closed is a letter.
            None => (letter == '[').then_some(1),
        },
        other => (*other == letter).then_some(1),
    }
}

type Ranges = Vec<(char, char)>;

/// The set that a pattern begins with: its ranges, whether it is negated, and how long it is.
fn set(pattern: &[char]) -> Option<(Ranges, bool, usize)> {
    let negated = matches!(pattern.get(1), Some('!' | '^'));
    let first = if negated { 2 } else { 1 };
    // A closing bracket at the front is a member.
    let end = first + 1 + pattern.get(first + 1..)?.iter().position(|letter| *letter == ']')?;
    let mut ranges = Vec::new();
    let mut at = first;
    while at < end {
        if at + 2 < end && pattern[at + 1] == '-' {
            ranges.push((pattern[at], pattern[at + 2]));
            at += 3;
        } else {
            ranges.push((pattern[at], pattern[at]));
            at += 1;
        }
    }
    Some((ranges, negated, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn five() -> Vec<Candidate> {
        let member = |name: &str, role| Candidate { name: name.to_owned(), is_member: true, role };
        vec![
            Candidate { name: "web".to_owned(), is_member: false, role: None },
            member("etcd1", Some(Role::Follower)),
            member("etcd2", Some(Role::Leader)),
            member("etcd3", None),
            member("etcd4", Some(Role::Learner)),
        ]
    }

    fn resolved(line: &str) -> Result<String, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let found = resolve(&words, &five(), &mut |below| below - 1);
        found.map(|names| names.join(" ")).map_err(|error| error.to_string())
    }

    #[test]
    fn words_name_processes_in_their_order_and_once() {
        let check = |line: &str, expected: &str| assert_eq!(resolved(line).as_deref(), Ok(expected), "{line}");
        check("etcd2 etcd1", "etcd2 etcd1");
        check("etcd* web etcd1", "etcd1 etcd2 etcd3 etcd4 web");
        check("etcd[1-2]", "etcd1 etcd2");
        check("all", "web etcd1 etcd2 etcd3 etcd4");
        check("leader", "etcd2");
        check("followers learners", "etcd1 etcd4");
        check("minority", "etcd1");
        check("majority", "etcd2 etcd1");
        check("random:2", "etcd4 etcd3");
        check("random", "etcd4");
    }

    #[test]
    fn unknown_words_are_all_named_with_what_is_known() {
        let check = |line: &str, expected: &str| assert_eq!(resolved(line), Err(expected.to_owned()), "{line}");
        let known = "(known: web, etcd1, etcd2, etcd3, etcd4)";
        check("web nosuch", &format!("unknown process: nosuch {known}"));
        check("x* etcd1 y", &format!("unknown processes: x*, y {known}"));
        check("random:9", "random:9 of 5 processes cannot be chosen");
        check("random:0", "random:0 of 5 processes cannot be chosen");
        check("random:-1", &format!("unknown process: random:-1 {known}"));
        let alone = [Candidate { name: "web".to_owned(), is_member: false, role: None }];
        for word in ["leader", "followers", "minority", "majority"] {
            let found = resolve(&[word.to_owned()], &alone, &mut |_| 0);
            assert_eq!(found, Err(TargetError::Nobody(format!("nobody is \"{word}\" now"))));
        }
    }

    #[test]
    fn a_process_called_leader_is_meant_by_its_name() {
        let known = [Candidate { name: "leader".to_owned(), is_member: false, role: None }];
        let words = ["leader".to_owned()];
        assert_eq!(resolve(&words, &known, &mut |_| 0), Ok(vec!["leader".to_owned()]));
        assert!(!need_roles(&words, &known) && need_roles(&words, &five()));
    }

    #[test]
    fn patterns_are_those_of_a_shell() {
        let check = |pattern: &str, name: &str, fits: bool| assert_eq!(glob(pattern, name), fits, "{pattern} {name}");
        check("*", "", true);
        check("a*b*c", "axxbyyc", true);
        check("a*b*c", "axxbyy", false);
        check("?", "ä", true);
        check("?", "", false);
        check("[!a-c]x", "dx", true);
        check("[!a-c]x", "bx", false);
        check("[]]", "]", true);
        check("[a", "[a", true);
        check("a[", "a[", true);
        check("web", "web1", false);
        // Stars after stars must not take for ever.
        check(&"*a".repeat(40), &"a".repeat(2_000), true);
        check(&format!("{}b", "*a".repeat(40)), &"a".repeat(2_000), false);
    }
}

//! Small YAML files written by people: the first document as a tree, with the lines of its keys.
//!
//! The library gives events; what a plain word means (a number, a truth value, nothing) is decided by whoever knows the
//! key, as Go's yaml.v3 does for a typed field.

use std::collections::BTreeMap;

use saphyr_parser::Event;
use saphyr_parser::Parser;
use saphyr_parser::ScalarStyle;

/// Nodes of a document, copies of anchored ones included: a few lines of aliases of aliases would stand for billions.
const NODES_MAX: usize = 10_000;
/// How deep lists and maps may lie in each other.
const DEPTH_MAX: usize = 64;

/// One node of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Scalar(Scalar),
    List(Vec<Value>),
    Map(Vec<Entry>),
}

/// A word or text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scalar {
    pub text: String,
    /// Without quotes: it may mean something else than text.
    pub plain: bool,
}

/// A key of a map. Keys differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    /// From 1.
    pub line: usize,
    pub value: Value,
}

impl Value {
    /// The text of a scalar that is something.
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Scalar(scalar) if !scalar.is_null() => Some(&scalar.text),
            _ => None,
        }
    }

    pub fn is_null(&self) -> bool {
        matches!(self, Value::Scalar(scalar) if scalar.is_null())
    }

    /// A truth value, in YAML 1.1's words, too.
    pub fn truth(&self) -> Option<bool> {
        let Value::Scalar(scalar) = self else { return None };
        match scalar.text.as_str() {
            "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
            "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
            "true" | "True" | "TRUE" if scalar.plain => Some(true),
            "false" | "False" | "FALSE" if scalar.plain => Some(false),
            _ => None,
        }
    }
}

impl Scalar {
    pub fn is_null(&self) -> bool {
        self.plain && matches!(self.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }
}

/// The first document of a text; null for one without any. Errors name the line.
pub fn document(text: &str) -> Result<Value, String> {
    let mut tree = Tree::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| format!("line {}: {}", error.marker().line(), error.info()))?;
        let line = span.start.line();
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                tree.add(Value::Scalar(Scalar { text: text.into_owned(), plain }), anchor, line)?;
            }
            Event::SequenceStart(anchor, _) => tree.open(Open::List(Vec::new()), anchor, line)?,
            Event::MappingStart(anchor, _) => tree.open(Open::Map { entries: Vec::new(), key: None }, anchor, line)?,
            Event::SequenceEnd | Event::MappingEnd => tree.close()?,
            Event::Alias(anchor) => {
                let value = tree.anchors.get(&anchor).cloned();
                tree.add(value.ok_or_else(|| format!("line {line}: an alias for what is not there"))?, 0, line)?;
            }
            Event::DocumentEnd => break,
            _ => {}
        }
    }
    Ok(tree.whole.unwrap_or(Value::Scalar(Scalar { text: String::new(), plain: true })))
}

/// A list or map whose end has not come.
enum Open {
    List(Vec<Value>),
    Map { entries: Vec<Entry>, key: Option<(String, usize)> },
}

#[derive(Default)]
struct Tree {
    open: Vec<(Open, usize, usize)>,
    anchors: BTreeMap<usize, Value>,
    nodes: usize,
    whole: Option<Value>,
}

impl Tree {
    fn open(&mut self, open: Open, anchor: usize, line: usize) -> Result<(), String> {
        if self.open.len() >= DEPTH_MAX {
            return Err(format!("line {line}: deeper than {DEPTH_MAX} levels"));
        }
        self.open.push((open, anchor, line));
        Ok(())
    }

    fn close(&mut self) -> Result<(), String> {
        let Some((open, anchor, line)) = self.open.pop() else { return Ok(()) };
        let value = match open {
            Open::List(list) => Value::List(list),
            Open::Map { entries, .. } => Value::Map(entries),
        };
        self.add(value, anchor, line)
    }

    /// A finished node goes where it belongs.
    fn add(&mut self, value: Value, anchor: usize, line: usize) -> Result<(), String> {
        self.nodes += size(&value);
        if self.nodes > NODES_MAX {
            return Err(format!("line {line}: more than {NODES_MAX} values"));
        }
        if anchor > 0 {
            self.anchors.insert(anchor, value.clone());
        }
        match self.open.last_mut() {
            None => self.whole = Some(value),
            Some((Open::List(list), ..)) => list.push(value),
            Some((Open::Map { entries, key }, ..)) => match (key.take(), value) {
                (Some((key, line)), value) => entries.push(Entry { key, line, value }),
                (None, Value::Scalar(scalar)) => {
                    if entries.iter().any(|entry| entry.key == scalar.text) {
                        return Err(format!("line {line}: key {:?} stands there twice", scalar.text));
                    }
                    *key = Some((scalar.text, line));
                }
                (None, _) => return Err(format!("line {line}: a key that is no word")),
            },
        }
        Ok(())
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::Scalar(_) => 1,
        Value::List(list) => 1 + list.iter().map(size).sum::<usize>(),
        Value::Map(entries) => 1 + entries.iter().map(|entry| 1 + size(&entry.value)).sum::<usize>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> Vec<(String, usize, Value)> {
        match document(text) {
            Ok(Value::Map(entries)) => entries.into_iter().map(|entry| (entry.key, entry.line, entry.value)).collect(),
            other => panic!("{text:?} is {other:?}"),
        }
    }

    fn plain(text: &str) -> Value {
        Value::Scalar(Scalar { text: text.to_owned(), plain: true })
    }

    #[test]
    fn maps_lists_and_aliases_become_a_tree_with_lines() {
        let found = map("# head\na: 1\nb: [x, 'y']\nc: &z\n  d: \"\"\ne: *z\n---\nf: 2\n");
        let quoted = |text: &str| Value::Scalar(Scalar { text: text.to_owned(), plain: false });
        let inner = |line| Value::Map(vec![Entry { key: "d".into(), line, value: quoted("") }]);
        assert_eq!(
            found,
            [
                ("a".to_owned(), 2, plain("1")),
                ("b".to_owned(), 3, Value::List(vec![plain("x"), quoted("y")])),
                ("c".to_owned(), 4, inner(5)),
                ("e".to_owned(), 6, inner(5)),
            ]
        );
        assert_eq!(document("").unwrap(), plain(""));
        assert_eq!(document("just text").unwrap(), plain("just text"));
    }

    #[test]
    fn words_mean_what_their_key_takes_them_for() {
        let truth = |text: &str| document(text).unwrap().truth();
        assert_eq!(["yes", "On", "TRUE", "'y'"].map(truth), [Some(true); 4]);
        assert_eq!(["no", "off", "False"].map(truth), [Some(false); 3]);
        assert_eq!(["'true'", "1", "", "[yes]", "!!str true"].map(truth), [None; 5]);
        let null = |text: &str| document(text).unwrap().is_null();
        assert!(["", "~", "null"].into_iter().all(null));
        assert!(!["''", "'null'", "0", "[]"].into_iter().any(null));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let wrong = |text: &str, expected: &str| {
            let error = document(text).unwrap_err();
            assert!(error.starts_with(expected), "{text:?}: {error}");
        };
        wrong("a: 1\nb: 2\na: 3\n", "line 3: key \"a\" stands there twice");
        wrong("[a]: 1\n", "line 1: a key that is no word");
        wrong("a: *nothing\n", "line 1");
        wrong("a: b\n  c: [\n", "line ");
        wrong(&"[".repeat(DEPTH_MAX + 1), "line 1: deeper");
        // Each line stands for ten times the one before.
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..10 {
            let copies = vec![format!("*a{}", level - 1); 10].join(",");
            bomb.push_str(&format!("a{level}: &a{level} [{copies}]\n"));
        }
        wrong(&bomb, "line 4: more than");
    }
}

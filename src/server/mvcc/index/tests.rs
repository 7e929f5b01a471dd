//! The index against a plain map of every change.

use std::collections::BTreeMap;

use super::*;
use crate::server::mvcc::testing::dice::Dice;

type Model = BTreeMap<Vec<u8>, Vec<Mark>>;

fn model_get(marks: &[Mark], at: i64) -> Option<Mark> {
    marks.iter().rev().find(|mark| mark.main <= at).filter(|mark| !mark.is_tombstone()).copied()
}

fn model_range(model: &Model, range: &KeyRange, at: i64) -> Vec<(Vec<u8>, Mark)> {
    let inside = model.iter().filter(|(key, _)| range.contains(key));
    inside.filter_map(|(key, marks)| Some((key.clone(), model_get(marks, at)?))).collect()
}

fn put(index: &mut Index, model: &mut Model, key: &[u8], main: i64) {
    index.change(key, |old| {
        let version = old.map_or(0, |mark| mark.version) + 1;
        let created = old.filter(|mark| !mark.is_tombstone()).map_or(main, |mark| mark.create_revision);
        let mark = Mark::put(Revision::new(main, 0), created, version, false, 1);
        model.entry(key.to_vec()).or_default().push(mark);
        Some(mark)
    });
}

fn delete(index: &mut Index, model: &mut Model, key: &[u8], main: i64) {
    index.change(key, |old| {
        old.filter(|mark| !mark.is_tombstone())?;
        let mark = Mark::tombstone(Revision::new(main, 0), 1);
        model.get_mut(key).unwrap().push(mark);
        Some(mark)
    });
}

fn compact(index: &mut Index, model: &mut Model, at: i64) {
    for key in model.keys().cloned().collect::<Vec<_>>() {
        index.compact(&key, at);
        let marks = model.get_mut(&key).unwrap();
        let visible = marks.iter().rposition(|mark| mark.main <= at);
        let mut i = 0;
        marks.retain(|mark| {
            let keep = mark.main > at || if mark.is_tombstone() { mark.main == at } else { Some(i) == visible };
            i += 1;
            keep
        });
        if marks.is_empty() {
            model.remove(&key);
        }
    }
}

fn random_range(dice: &mut Dice, keys: u64) -> KeyRange {
    let mut key = || Bytes::from(format!("{:05}", dice.below(keys)));
    let (a, b) = (key(), key());
    match dice.below(4) {
        0 => KeyRange::One(a),
        1 => KeyRange::From(a),
        2 => KeyRange::From(Bytes::new()),
        _ => KeyRange::Span(a, b),
    }
}

fn compare(index: &Index, model: &Model, range: &KeyRange, at: i64) {
    let expected = model_range(model, range, at);
    let found: Vec<_> = index.range(range, at, usize::MAX).into_iter().map(|f| (f.key.to_vec(), f.mark)).collect();
    assert_eq!(found, expected, "{range:?} at {at}");
    assert_eq!(index.count(range, at), expected.len(), "{range:?} at {at}");
    assert_eq!(index.range(range, at, 3).len(), expected.len().min(3));
}

#[test]
fn random_changes_agree_with_a_plain_map() {
    for seed in 0..6 {
        let mut dice = Dice::new(seed);
        let keys = [40, 400, 3000][seed as usize % 3];
        let (mut index, mut model, mut compacted) = (Index::default(), Model::new(), 0);
        let mut pictures: Vec<(i64, Index, Model)> = Vec::new();
        for main in 2..3000 {
            let key = format!("{:05}", dice.below(keys)).into_bytes();
            match dice.below(10) {
                0..=6 => put(&mut index, &mut model, &key, main),
                _ => delete(&mut index, &mut model, &key, main),
            }
            if dice.one_in(200) {
                index.check();
            }
            if dice.one_in(400) {
                compacted = dice.between(compacted, main);
                compact(&mut index, &mut model, compacted);
                index.check();
            }
            if dice.one_in(100) {
                let range = random_range(&mut dice, keys);
                compare(&index, &model, &range, dice.between(compacted, main));
                let first = dice.between(compacted + 1, main + 1);
                let revisions = index.revisions_between(&range, first, main);
                let marks = model.iter().filter(|(key, _)| range.contains(key)).flat_map(|(_, marks)| marks);
                let mut expected: Vec<_> = marks.filter(|m| m.main >= first).map(Mark::revision).collect();
                expected.sort();
                assert_eq!(revisions, expected);
            }
            if dice.one_in(500) {
                pictures.push((main, index.clone(), model.clone()));
            }
        }
        for (main, index, model) in &pictures {
            compare(index, model, &KeyRange::From(Bytes::new()), *main);
        }
        let entries = model.iter().map(|(key, marks)| Entry::from_marks(Arc::from(key.as_slice()), marks)).collect();
        let built = Index::build(entries);
        built.check();
        for _ in 0..50 {
            compare(&built, &model, &random_range(&mut dice, keys), dice.between(compacted, 2999));
        }
    }
}

#[test]
fn a_picture_in_the_middle_of_a_batch_ignores_what_is_newer() {
    let (mut index, mut model) = (Index::default(), Model::new());
    for main in 2..200 {
        put(&mut index, &mut model, format!("{main:05}").as_bytes(), main);
    }
    let all = KeyRange::From(Bytes::new());
    assert_eq!(index.count(&all, 100), 99);
    assert_eq!(index.count(&all, 1), 0);
    assert_eq!(index.live_keys(), 198);
}

#[test]
fn emptied_trees_shrink_and_take_keys_again() {
    let (mut index, mut model) = (Index::default(), Model::new());
    let keys: Vec<Vec<u8>> = (0..5000).map(|i| format!("{i:05}").into_bytes()).collect();
    keys.iter().for_each(|key| put(&mut index, &mut model, key, 2));
    keys.iter().for_each(|key| delete(&mut index, &mut model, key, 3));
    compact(&mut index, &mut model, 4);
    assert_eq!((index.live_keys(), index.root.check()), (0, 1));
    put(&mut index, &mut model, b"k", 5);
    compare(&index, &model, &KeyRange::From(Bytes::new()), 5);
}

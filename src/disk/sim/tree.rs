//! Directories of the simulated disk: entries, and which of them a power cut would leave.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::path::Component;
use std::path::Path;

use crate::disk::sim::dice::Dice;

/// What a name stands for: an index into the inodes, or into the directories of this tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    File(usize),
    Dir(usize),
}

type Names = BTreeMap<String, Node>;

/// One operation: each change gives a name in a directory a new meaning, all of them or none.
#[derive(Clone, Debug)]
struct Edit {
    changes: Vec<(usize, String, Option<Node>)>,
}

/// Directory 0 is the root, which every relative path starts from, too.
#[derive(Clone, Debug)]
pub struct Tree {
    durable: Vec<Names>,
    current: Vec<Names>,
    /// Operations since the syncs that would have saved them, oldest first.
    pending: Vec<Edit>,
}

impl Tree {
    pub fn new() -> Tree {
        Tree { durable: vec![Names::new()], current: vec![Names::new()], pending: Vec::new() }
    }

    pub fn find(&self, path: &Path) -> io::Result<Node> {
        let mut node = Node::Dir(0);
        for name in names(path)? {
            let Node::Dir(dir) = node else { return Err(io::ErrorKind::NotADirectory.into()) };
            node = *self.current[dir].get(&name).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(node)
    }

    pub fn find_file(&self, path: &Path) -> io::Result<usize> {
        match self.find(path)? {
            Node::File(inode) => Ok(inode),
            Node::Dir(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn find_dir(&self, path: &Path) -> io::Result<usize> {
        match self.find(path)? {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// The directory that holds the last name of `path`, and that name.
    fn place(&self, path: &Path) -> io::Result<(usize, String)> {
        let name = names(path)?.pop().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.find_dir(path.parent().unwrap_or(path))?, name))
    }

    pub fn create_file(&mut self, path: &Path, inode: usize) -> io::Result<()> {
        let (dir, name) = self.place(path)?;
        if self.current[dir].contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.edit(vec![(dir, name, Some(Node::File(inode)))]);
        Ok(())
    }

    pub fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        let mut dir = 0;
        for name in names(path)? {
            dir = match self.current[dir].get(&name) {
                Some(Node::Dir(existing)) => *existing,
                Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => {
                    let fresh = self.current.len();
                    self.current.push(Names::new());
                    self.durable.push(Names::new());
                    self.edit(vec![(dir, name, Some(Node::Dir(fresh)))]);
                    fresh
                }
            };
        }
        Ok(())
    }

    pub fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.find_file(path)?;
        let (dir, name) = self.place(path)?;
        self.edit(vec![(dir, name, None)]);
        Ok(())
    }

    pub fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let node = self.find(from)?;
        let (from_dir, from_name) = self.place(from)?;
        let (to_dir, to_name) = self.place(to)?;
        self.edit(vec![(from_dir, from_name, None), (to_dir, to_name, Some(node))]);
        Ok(())
    }

    pub fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        Ok(self.current[self.find_dir(path)?].keys().cloned().collect())
    }

    fn edit(&mut self, changes: Vec<(usize, String, Option<Node>)>) {
        let edit = Edit { changes };
        perform(&mut self.current, &edit);
        self.pending.push(edit);
    }

    /// Makes the pending operations of one directory durable, and the earlier ones of any directory that they touch
    /// (a journal never saves a rename without what led to it).
    pub fn sync(&mut self, path: &Path) -> io::Result<()> {
        let mut dirs = BTreeSet::from([self.find_dir(path)?]);
        let mut saved = vec![false; self.pending.len()];
        for (number, edit) in self.pending.iter().enumerate().rev() {
            if edit.changes.iter().any(|(dir, ..)| dirs.contains(dir)) {
                saved[number] = true;
                dirs.extend(edit.changes.iter().map(|(dir, ..)| *dir));
            }
        }
        let mut saved = saved.into_iter();
        let mut left = Vec::new();
        for edit in std::mem::take(&mut self.pending) {
            match saved.next() {
                Some(true) => perform(&mut self.durable, &edit),
                _ => left.push(edit),
            }
        }
        self.pending = left;
        Ok(())
    }

    /// What a power cut leaves: of the unsynced operations, either a first part of each directory's (ext4 journals in
    /// order) or, on other seeds, any of them (btrfs and ext4 without a journal).
    pub fn crash(&self, dice: &mut Dice) -> Tree {
        let mut durable = self.durable.clone();
        let in_order = dice.chance(50);
        let kept_percent = dice.pick(&[0, 50, 90, 100]);
        let mut stopped = BTreeSet::new();
        for edit in &self.pending {
            let touches_stopped = edit.changes.iter().any(|(dir, ..)| stopped.contains(dir));
            if dice.chance(kept_percent) && !(in_order && touches_stopped) {
                perform(&mut durable, edit);
            } else {
                stopped.extend(edit.changes.iter().map(|(dir, ..)| *dir));
            }
        }
        Tree { current: durable.clone(), durable, pending: Vec::new() }
    }
}

fn perform(dirs: &mut [Names], edit: &Edit) {
    for (dir, name, node) in &edit.changes {
        match node {
            Some(node) => dirs[*dir].insert(name.clone(), *node),
            None => dirs[*dir].remove(name),
        };
    }
}

fn names(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                names.push(name.to_str().ok_or(io::ErrorKind::InvalidFilename)?.to_owned());
            }
            Component::ParentDir | Component::Prefix(_) => return Err(io::ErrorKind::InvalidFilename.into()),
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survivors(tree: &Tree, dir: &str) -> BTreeSet<Vec<String>> {
        (0..200).filter_map(|seed| tree.crash(&mut Dice::new(seed)).list(Path::new(dir)).ok()).collect()
    }

    fn set(lists: &[&[&str]]) -> BTreeSet<Vec<String>> {
        lists.iter().map(|list| list.iter().map(|name| (*name).to_owned()).collect()).collect()
    }

    #[test]
    fn unsynced_creations_may_vanish_and_synced_ones_do_not() {
        let mut tree = Tree::new();
        tree.create_file(Path::new("/a"), 0).unwrap();
        assert_eq!(survivors(&tree, "/"), set(&[&[], &["a"]]));
        tree.sync(Path::new("/")).unwrap();
        assert_eq!(survivors(&tree, "/"), set(&[&["a"]]));
    }

    #[test]
    fn unsynced_rename_leaves_the_old_name_or_the_new_one() {
        let mut tree = Tree::new();
        tree.create_file(Path::new("/a"), 0).unwrap();
        tree.sync(Path::new("/")).unwrap();
        tree.rename(Path::new("/a"), Path::new("/b")).unwrap();
        assert_eq!(survivors(&tree, "/"), set(&[&["a"], &["b"]]));
    }

    #[test]
    fn directory_that_was_not_synced_takes_its_synced_files_along() {
        let mut tree = Tree::new();
        tree.create_dir_all(Path::new("/d")).unwrap();
        tree.create_file(Path::new("/d/a"), 0).unwrap();
        tree.sync(Path::new("/d")).unwrap();
        assert_eq!(survivors(&tree, "/"), set(&[&[], &["d"]]));
        assert_eq!(survivors(&tree, "/d"), set(&[&["a"]]));
    }

    #[test]
    fn rename_between_directories_is_saved_whole_with_what_led_to_it() {
        let mut tree = Tree::new();
        for dir in ["/x", "/y"] {
            tree.create_dir_all(Path::new(dir)).unwrap();
        }
        tree.sync(Path::new("/")).unwrap();
        tree.create_file(Path::new("/x/a"), 0).unwrap();
        tree.rename(Path::new("/x/a"), Path::new("/y/a")).unwrap();
        tree.sync(Path::new("/y")).unwrap();
        assert_eq!(survivors(&tree, "/x"), set(&[&[]]));
        assert_eq!(survivors(&tree, "/y"), set(&[&["a"]]));
    }

    #[test]
    fn wrong_paths_are_errors() {
        let mut tree = Tree::new();
        tree.create_file(Path::new("/a"), 0).unwrap();
        let kind = |result: io::Result<()>| result.err().map(|error| error.kind());
        assert_eq!(kind(tree.create_file(Path::new("/a"), 1)), Some(io::ErrorKind::AlreadyExists));
        assert_eq!(kind(tree.create_file(Path::new("/d/a"), 1)), Some(io::ErrorKind::NotFound));
        assert_eq!(kind(tree.remove(Path::new("/b"))), Some(io::ErrorKind::NotFound));
        assert_eq!(kind(tree.create_dir_all(Path::new("/a/b"))), Some(io::ErrorKind::NotADirectory));
        assert_eq!(kind(tree.sync(Path::new("/a"))), Some(io::ErrorKind::NotADirectory));
    }
}

//! Streams a new etcd database file: trees bottom up, one page a level in memory, metas last.
//!
//! Pages are taken in ascending order as they are written; a branch page is written when it is full and leaves one entry in
//! the level above. The metas come last, so a file cut short has none and is refused. A file that is read while it grows
//! needs them first: then the same walk is done twice, and the first time, without a file, finds out where its root will
//! be.

use std::fs::File;
use std::io::BufWriter;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

use bytes::Bytes;

use crate::common::failure::Failure;
use crate::server::snapshot::boltfile::page;
use crate::server::snapshot::boltfile::page::BRANCH_FLAG;
use crate::server::snapshot::boltfile::page::BUCKET_ELEMENT;
use crate::server::snapshot::boltfile::page::ELEMENT_BYTES;
use crate::server::snapshot::boltfile::page::HEADER_BYTES;
use crate::server::snapshot::boltfile::page::LEAF_FLAG;
use crate::server::snapshot::boltfile::page::META_FLAG;
use crate::server::snapshot::boltfile::page::Meta;
use crate::server::snapshot::boltfile::page::NO_FREELIST;
use crate::server::snapshot::boltfile::page::PAGE_BYTES;
use crate::server::snapshot::boltfile::page::PageHeader;

/// Pages 0 and 1 are meta, 2 stays free (server.md 14.7, minimal writer).
const FIRST_PAGE: u64 = 3;

/// A bucket of one leaf up to this size lies in its parent, as bbolt does it.
const INLINE_BYTES_MAX: usize = PAGE_BYTES / 4;

/// Elements that share a page however large they are.
const ELEMENTS_MIN: usize = 2;

/// Bytes collected before they go to the file.
const BUFFER_BYTES: usize = 1 << 18;

/// Writes one file. Buckets in ascending order of their names, each with its pairs in ascending order of their keys.
pub struct BoltWriter {
    out: Pages,
    root: Tree,
    bucket: Option<(&'static str, Tree)>,
    /// Bytes of pairs given so far, for whoever paces the writing.
    written: u64,
    /// What the metas say already.
    promised: Option<Layout>,
}

/// What the metas of a file say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    root: u64,
    pages: u64,
}

impl Layout {
    /// Length of the file.
    pub fn bytes(self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }
}

impl BoltWriter {
    /// Begins to write an empty file. `path` is its name in messages.
    pub fn create(file: File, path: &Path) -> Result<BoltWriter, Failure> {
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, file);
        let start = FIRST_PAGE * PAGE_BYTES as u64;
        file.seek(SeekFrom::Start(start)).map_err(Failure::io("cannot write", path))?;
        Ok(BoltWriter::over(Some(file), path))
    }

    /// As `create`, with the metas first: what follows must lead to this layout.
    pub fn create_as(layout: Layout, file: File, path: &Path) -> Result<BoltWriter, Failure> {
        write_metas(&file, path, layout)?;
        Ok(BoltWriter { promised: Some(layout), ..BoltWriter::create(file, path)? })
    }

    /// A writer of nothing, for `layout`. Of values only the length counts.
    pub fn measuring() -> BoltWriter {
        BoltWriter::over(None, Path::new(""))
    }

    fn over(file: Option<BufWriter<File>>, path: &Path) -> BoltWriter {
        let out = Pages { file, path: path.to_owned(), next: FIRST_PAGE };
        BoltWriter { out, root: Tree::default(), bucket: None, written: 0, promised: None }
    }

    /// Where a file of all this has its root, and its end.
    pub fn layout(mut self) -> Result<Layout, Failure> {
        self.end()
    }

    /// Bytes of the file that can be read.
    pub fn readable(&self) -> u64 {
        let waiting = self.out.file.as_ref().map_or(0, |file| file.buffer().len());
        self.out.next * PAGE_BYTES as u64 - waiting as u64
    }

    /// Begins a bucket; an empty one is a bucket too.
    pub fn bucket(&mut self, name: &'static str) -> Result<(), Failure> {
        self.end_bucket()?;
        self.bucket = Some((name, Tree::default()));
        Ok(())
    }

    /// Adds a pair to the current bucket.
    pub fn pair(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        let (name, tree) = self.bucket.as_mut().expect("a bucket was begun before its pairs");
        assert!(tree.last.is_empty() || tree.last[..] < *key, "the keys of bucket {name} ascend");
        self.written += (key.len() + value.len()) as u64;
        tree.pair(&mut self.out, 0, key, value)
    }

    pub fn written(&self) -> u64 {
        self.written
    }

    /// Writes the root and the metas: the file, its length, nothing synced.
    pub fn finish(mut self) -> Result<(File, u64), Failure> {
        let layout = self.end()?;
        let Pages { file, path, .. } = self.out;
        let file = file.expect("a writer that measures is not finished but asked for its layout");
        let file = file.into_inner().map_err(|error| Failure::io("cannot write", &path)(error.into_error()))?;
        match self.promised {
            None => write_metas(&file, &path, layout)?,
            Some(promised) if promised == layout => {}
            Some(promised) => {
                return Err(Failure::damaged(&path, format!("it was to be {promised:?} and has become {layout:?}")));
            }
        }
        Ok((file, layout.bytes()))
    }

    fn end(&mut self) -> Result<Layout, Failure> {
        self.end_bucket()?;
        let root = std::mem::take(&mut self.root).finish(&mut self.out)?;
        Ok(Layout { root, pages: self.out.next })
    }

    fn end_bucket(&mut self) -> Result<(), Failure> {
        let Some((name, tree)) = self.bucket.take() else { return Ok(()) };
        let mut value = Vec::new();
        if tree.levels.is_empty() && tree.leaf.page_bytes() <= INLINE_BYTES_MAX {
            value.extend_from_slice(&page::encode_bucket(0));
            tree.leaf.encode(0, &mut value);
        } else {
            value.extend_from_slice(&page::encode_bucket(tree.finish(&mut self.out)?));
        }
        assert!(self.root.last.is_empty() || self.root.last[..] < *name.as_bytes(), "bucket {name} comes in order");
        self.root.pair(&mut self.out, BUCKET_ELEMENT, name.as_bytes(), &value)
    }
}

/// Two metas with the same root, as in an image that etcd saves.
fn write_metas(file: &File, path: &Path, layout: Layout) -> Result<(), Failure> {
    let Layout { root, pages } = layout;
    for id in [0, 1] {
        let header = PageHeader { id, flags: META_FLAG, count: 0, overflow: 0 };
        let meta = Meta { page_bytes: PAGE_BYTES as u32, root, freelist: NO_FREELIST, high_water: pages, txid: id };
        let mut bytes = [0; PAGE_BYTES];
        bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
        bytes[HEADER_BYTES..HEADER_BYTES + page::META_BYTES].copy_from_slice(&meta.encode());
        file.write_all_at(&bytes, id * PAGE_BYTES as u64).map_err(Failure::io("cannot write", path))?;
    }
    Ok(())
}

/// The file as a run of pages.
struct Pages {
    /// None where only their number is wanted.
    file: Option<BufWriter<File>>,
    path: PathBuf,
    /// Id of the next page.
    next: u64,
}

impl Pages {
    /// Writes a page with its overflow: its id.
    fn write(&mut self, page: &PageBuilder) -> Result<u64, Failure> {
        let id = self.next;
        let length = page.page_bytes().next_multiple_of(PAGE_BYTES);
        if let Some(file) = &mut self.file {
            let mut bytes = Vec::with_capacity(length);
            page.encode(id, &mut bytes);
            bytes.resize(length, 0);
            file.write_all(&bytes).map_err(Failure::io("cannot write", &self.path))?;
        }
        self.next += (length / PAGE_BYTES) as u64;
        Ok(id)
    }
}

/// A tree that grows to the right.
struct Tree {
    leaf: PageBuilder,
    /// Branch levels, lowest first.
    levels: Vec<PageBuilder>,
    /// The newest key.
    last: Vec<u8>,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree { leaf: PageBuilder::new(LEAF_FLAG), levels: Vec::new(), last: Vec::new() }
    }
}

impl Tree {
    fn pair(&mut self, out: &mut Pages, flags: u32, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        if !self.leaf.fits(key.len() + value.len()) {
            let full = std::mem::replace(&mut self.leaf, PageBuilder::new(LEAF_FLAG));
            self.emit(out, 0, full)?;
        }
        self.leaf.push_pair(flags, key, value);
        self.last.clear();
        self.last.extend_from_slice(key);
        Ok(())
    }

    /// Writes a full page and enters it in branch level `level`, making room there first.
    fn emit(&mut self, out: &mut Pages, level: usize, page: PageBuilder) -> Result<(), Failure> {
        let first = page.first_key();
        let id = out.write(&page)?;
        if level == self.levels.len() {
            self.levels.push(PageBuilder::new(BRANCH_FLAG));
        }
        if !self.levels[level].fits(first.len()) {
            let full = std::mem::replace(&mut self.levels[level], PageBuilder::new(BRANCH_FLAG));
            self.emit(out, level + 1, full)?;
        }
        self.levels[level].push_child(&first, id);
        Ok(())
    }

    /// Writes what is left, bottom up: the root page.
    fn finish(mut self, out: &mut Pages) -> Result<u64, Failure> {
        if self.levels.is_empty() {
            return out.write(&self.leaf);
        }
        let leaf = std::mem::replace(&mut self.leaf, PageBuilder::new(LEAF_FLAG));
        self.emit(out, 0, leaf)?;
        let mut level = 0;
        loop {
            let page = std::mem::replace(&mut self.levels[level], PageBuilder::new(BRANCH_FLAG));
            if level + 1 == self.levels.len() {
                return out.write(&page);
            }
            self.emit(out, level + 1, page)?;
            level += 1;
        }
    }
}

/// Elements of one page, collected until it is full.
struct PageBuilder {
    flags: u16,
    /// First word of the element (flags of a leaf's, unused in a branch's), key and value length, child.
    elements: Vec<Element>,
    /// Keys and values, one behind the other.
    data: Vec<u8>,
}

struct Element {
    flags: u32,
    key_bytes: u32,
    value_bytes: u32,
    child: u64,
}

impl PageBuilder {
    fn new(flags: u16) -> PageBuilder {
        PageBuilder { flags, elements: Vec::new(), data: Vec::new() }
    }

    /// Whether another element with this much data goes in. The first two always do, as in bbolt, and overflow: two
    /// values of a little more than a page then take three pages, not four.
    fn fits(&self, bytes: usize) -> bool {
        self.elements.len() < ELEMENTS_MIN || self.page_bytes() + ELEMENT_BYTES + bytes <= PAGE_BYTES
    }

    fn page_bytes(&self) -> usize {
        HEADER_BYTES + self.elements.len() * ELEMENT_BYTES + self.data.len()
    }

    fn push_pair(&mut self, flags: u32, key: &[u8], value: &[u8]) {
        let (key_bytes, value_bytes) = (length(key.len()), length(value.len()));
        self.elements.push(Element { flags, key_bytes, value_bytes, child: 0 });
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
    }

    fn push_child(&mut self, first_key: &[u8], child: u64) {
        self.elements.push(Element { flags: 0, key_bytes: length(first_key.len()), value_bytes: 0, child });
        self.data.extend_from_slice(first_key);
    }

    fn first_key(&self) -> Bytes {
        let bytes = self.elements.first().map_or(0, |element| element.key_bytes as usize);
        Bytes::copy_from_slice(&self.data[..bytes])
    }

    /// Appends header, elements and data, without padding.
    fn encode(&self, id: u64, out: &mut Vec<u8>) {
        let count = u16::try_from(self.elements.len()).expect("a page has room for 255 elements");
        let overflow = length(self.page_bytes().div_ceil(PAGE_BYTES) - 1);
        out.extend_from_slice(&PageHeader { id, flags: self.flags, count, overflow }.encode());
        let mut data_at = self.elements.len() * ELEMENT_BYTES;
        for (index, element) in self.elements.iter().enumerate() {
            // Positions count from the element itself.
            let position = length(data_at - index * ELEMENT_BYTES);
            if self.flags == LEAF_FLAG {
                let words = [element.flags, position, element.key_bytes, element.value_bytes];
                words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
            } else {
                out.extend_from_slice(&position.to_le_bytes());
                out.extend_from_slice(&element.key_bytes.to_le_bytes());
                out.extend_from_slice(&element.child.to_le_bytes());
            }
            data_at += element.key_bytes as usize + element.value_bytes as usize;
        }
        out.extend_from_slice(&self.data);
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("requests are limited far below 4 GiB")
}

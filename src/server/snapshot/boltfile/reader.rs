//! Reads etcd's database file page by page. Any bytes may come: they are refused with a reason, never followed blindly.
//!
//! A walk cannot run in circles: below a root every leaf has pairs, keys ascend strictly over the whole tree, and its depth
//! is bounded. Memory is one page (with its overflow) a level.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

use bytes::Bytes;
use sha2::Digest as _;
use sha2::Sha256;

use crate::common::failure::Failure;
use crate::server::snapshot::boltfile::page;
use crate::server::snapshot::boltfile::page::BRANCH_FLAG;
use crate::server::snapshot::boltfile::page::HEADER_BYTES;
use crate::server::snapshot::boltfile::page::LEAF_FLAG;
use crate::server::snapshot::boltfile::page::META_BYTES;
use crate::server::snapshot::boltfile::page::META_FLAG;
use crate::server::snapshot::boltfile::page::Meta;
use crate::server::snapshot::boltfile::page::PageHeader;

/// Page sizes that bbolt can have chosen: powers of two, from its smallest to the largest page of any machine.
const PAGE_BYTES_RANGE: std::ops::RangeInclusive<u64> = 1024..=(1 << 20);

/// Levels of a tree. A tree of this many with two children a branch would have four thousand million leaves.
const DEPTH_MAX: usize = 32;

/// Length of a page with its overflow: more than any request that etcd can be told to accept.
const RUN_BYTES_MAX: u64 = 1 << 30;

/// Length of the digest that `snapshot save` puts behind the image.
pub const DIGEST_BYTES: u64 = 32;

/// A snapshot with a digest is longer than whole sectors by exactly the digest: how tools tell (server.md 6.6).
const SECTOR_BYTES: u64 = 512;

/// Bytes read at a time for the digest.
const DIGEST_CHUNK_BYTES: usize = 1 << 18;

/// An open database file whose meta pages were checked.
#[derive(Debug)]
pub struct BoltFile {
    file: File,
    path: PathBuf,
    page_bytes: u64,
    /// Pages below the high-water mark; all of them are inside the file.
    pages: u64,
    root: u64,
    txid: u64,
}

/// Where a bucket's tree begins.
#[derive(Clone, Debug)]
enum Root {
    Page(u64),
    Inline(Bytes),
}

impl BoltFile {
    /// Opens a file and checks its meta pages, and its digest if it ends with one.
    pub fn open(path: &Path) -> Result<BoltFile, Failure> {
        let file = File::open(path).map_err(Failure::io("cannot open", path))?;
        BoltFile::from_file(file, path)
    }

    /// As `open`, for a file that is open already; `path` is its name in messages.
    pub fn from_file(file: File, path: &Path) -> Result<BoltFile, Failure> {
        if let Some(digest) = Digest::of(&file, path)?
            && !digest.matches()
        {
            return Err(Failure::damaged(path, "its SHA-256 does not match"));
        }
        BoltFile::without_digest(file, path)
    }

    /// As `from_file`, whatever the digest says.
    pub fn without_digest(file: File, path: &Path) -> Result<BoltFile, Failure> {
        let mut bytes = file.metadata().map_err(Failure::io("cannot read", path))?.len();
        if has_digest(bytes) {
            bytes -= DIGEST_BYTES;
        }
        let meta = newest_meta(&file, path, bytes)?;
        let page_bytes = u64::from(meta.page_bytes);
        let damaged = |detail: String| Err(Failure::damaged(path, detail));
        if !(PAGE_BYTES_RANGE.contains(&page_bytes) && page_bytes.is_power_of_two()) {
            return damaged(format!("page size {page_bytes}"));
        }
        match meta.high_water.checked_mul(page_bytes) {
            Some(needed) if needed <= bytes => {}
            _ => return damaged(format!("{} pages of {page_bytes} bytes in {bytes} bytes", meta.high_water)),
        }
        let path = path.to_owned();
        Ok(BoltFile { file, path, page_bytes, pages: meta.high_water, root: meta.root, txid: meta.txid })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the image: what `snapshot status` calls its size.
    pub fn image_bytes(&self) -> u64 {
        self.pages * self.page_bytes
    }

    /// Transaction that wrote the file's newest state.
    pub fn txid(&self) -> u64 {
        self.txid
    }

    /// Names of all buckets, ascending.
    pub fn buckets(&self) -> Result<Vec<Bytes>, Failure> {
        Ok(self.roots()?.into_iter().map(|(name, _)| name).collect())
    }

    /// The pairs of a bucket in key order; none if there is no such bucket.
    pub fn pairs(&self, bucket: &str) -> Result<Pairs<'_>, Failure> {
        let root = self.roots()?.into_iter().find(|(name, _)| &name[..] == bucket.as_bytes());
        match root {
            Some((_, root)) => Pairs::start(self, root, false),
            None => Ok(Pairs { file: self, levels: Vec::new(), last: None, buckets: false, ended: true }),
        }
    }

    /// The last key of a bucket; `None` if it has none. Reads one page a level.
    pub fn last_key(&self, bucket: &str) -> Result<Option<Bytes>, Failure> {
        let root = self.roots()?.into_iter().find(|(name, _)| &name[..] == bucket.as_bytes());
        let Some((_, root)) = root else { return Ok(None) };
        let (mut header, mut page) = self.root_page(root)?;
        for _ in 0..DEPTH_MAX {
            let cut_off = || self.damaged(format!("the last element of page {} is cut off", header.id));
            let Some(last) = usize::from(header.count).checked_sub(1) else { return Ok(None) };
            if header.flags == LEAF_FLAG {
                let element = page::leaf_element(&page, last).ok_or_else(cut_off)?;
                return Ok(Some(page.slice(element.key)));
            }
            let (_, child) = page::branch_element(&page, last).ok_or_else(cut_off)?;
            (header, page) = self.page(child)?;
        }
        Err(self.damaged(format!("page {} is too deep", header.id)))
    }

    fn roots(&self) -> Result<Vec<(Bytes, Root)>, Failure> {
        let mut roots = Vec::new();
        for pair in Pairs::start(self, Root::Page(self.root), true)? {
            let (name, value) = pair?;
            let root = match page::decode_bucket(&value) {
                Some((0, inline)) => Root::Inline(value.slice_ref(inline)),
                Some((page, _)) => Root::Page(page),
                None => return Err(self.damaged(format!("bucket {} has no root", name.escape_ascii()))),
            };
            roots.push((name, root));
        }
        Ok(roots)
    }

    fn root_page(&self, root: Root) -> Result<(PageHeader, Bytes), Failure> {
        match root {
            Root::Page(id) => self.page(id),
            Root::Inline(page) => {
                let header = PageHeader::decode(&page).filter(|header| header.flags == LEAF_FLAG);
                Ok((header.ok_or_else(|| self.damaged("an inline bucket is not a leaf page".into()))?, page))
            }
        }
    }

    /// Reads a page with its overflow and checks that it is where and what it says.
    fn page(&self, id: u64) -> Result<(PageHeader, Bytes), Failure> {
        if id < 2 || id >= self.pages {
            return Err(self.damaged(format!("page {id} of {} is referred to", self.pages)));
        }
        let at = id * self.page_bytes;
        let mut head = [0; HEADER_BYTES];
        self.read_at(&mut head, at)?;
        let header = PageHeader::decode(&head).expect("the buffer has a header's length");
        let run = u64::from(header.overflow) + 1;
        if header.id != id || run > self.pages - id || run * self.page_bytes > RUN_BYTES_MAX {
            return Err(self.damaged(format!("page {id} says it is {} with {} more", header.id, header.overflow)));
        }
        let mut bytes = vec![0; usize::try_from(run * self.page_bytes).expect("limited just above")];
        self.read_at(&mut bytes, at)?;
        Ok((header, Bytes::from(bytes)))
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<(), Failure> {
        self.file.read_exact_at(buffer, at).map_err(Failure::io("cannot read", &self.path))
    }

    fn damaged(&self, detail: String) -> Failure {
        Failure::damaged(&self.path, detail)
    }
}

/// Walks the pairs of one tree in key order. Ends after the first error.
pub struct Pairs<'a> {
    file: &'a BoltFile,
    levels: Vec<Level>,
    last: Option<Bytes>,
    /// Whether the tree holds buckets, or plain pairs. Nothing of etcd's mixes them.
    buckets: bool,
    ended: bool,
}

/// A page on the way from the root to the current pair.
struct Level {
    header: PageHeader,
    page: Bytes,
    next: usize,
}

impl<'a> Pairs<'a> {
    fn start(file: &'a BoltFile, root: Root, buckets: bool) -> Result<Pairs<'a>, Failure> {
        let (header, page) = file.root_page(root)?;
        let mut pairs = Pairs { file, levels: Vec::new(), last: None, buckets, ended: false };
        pairs.descend(header, page)?;
        Ok(pairs)
    }

    fn descend(&mut self, header: PageHeader, page: Bytes) -> Result<(), Failure> {
        let wrong = match header.flags {
            _ if self.levels.len() == DEPTH_MAX => Some("is too deep"),
            LEAF_FLAG if header.count == 0 && !self.levels.is_empty() => Some("is an empty leaf"),
            BRANCH_FLAG if header.count == 0 => Some("is an empty branch"),
            LEAF_FLAG | BRANCH_FLAG => None,
            _ => Some("is neither branch nor leaf"),
        };
        if let Some(wrong) = wrong {
            return Err(self.file.damaged(format!("page {} {wrong}", header.id)));
        }
        self.levels.push(Level { header, page, next: 0 });
        Ok(())
    }

    /// The next pair: `None` behind the last.
    fn step(&mut self) -> Result<Option<(Bytes, Bytes)>, Failure> {
        while let Some(level) = self.levels.last_mut() {
            let (index, id) = (level.next, level.header.id);
            if index == usize::from(level.header.count) {
                self.levels.pop();
                continue;
            }
            level.next += 1;
            if level.header.flags == LEAF_FLAG {
                let element = page::leaf_element(&level.page, index);
                let element =
                    element.ok_or_else(|| self.file.damaged(format!("element {index} of page {id} is cut off")))?;
                let pair = (level.page.slice(element.key), level.page.slice(element.value));
                return self.checked(pair, element.is_bucket, id).map(Some);
            }
            let element = page::branch_element(&level.page, index);
            let (key, child) =
                element.ok_or_else(|| self.file.damaged(format!("element {index} of page {id} is cut off")))?;
            // The smallest key of the child: everything before it is smaller.
            let key = level.page.slice(key);
            if self.last.as_ref().is_some_and(|last| *last >= key) {
                return Err(self.file.damaged(format!("the keys of page {id} do not ascend")));
            }
            let (header, page) = self.file.page(child)?;
            self.descend(header, page)?;
        }
        Ok(None)
    }

    fn checked(&mut self, pair: (Bytes, Bytes), is_bucket: bool, id: u64) -> Result<(Bytes, Bytes), Failure> {
        let (key, _) = &pair;
        if key.is_empty() || self.last.as_ref().is_some_and(|last| last >= key) {
            return Err(self.file.damaged(format!("the keys of page {id} do not ascend")));
        }
        if is_bucket != self.buckets {
            let what = if is_bucket { "a bucket inside a bucket" } else { "a pair among the buckets" };
            return Err(self.file.damaged(format!("page {id} has {what}")));
        }
        self.last = Some(key.clone());
        Ok(pair)
    }
}

impl Iterator for Pairs<'_> {
    type Item = Result<(Bytes, Bytes), Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let pair = self.step();
        self.ended = !matches!(pair, Ok(Some(_)));
        pair.transpose()
    }
}

/// The valid meta page with the higher txid. The second one's place depends on the page size, which only the first one
/// tells; if that one is damaged, every size is tried.
fn newest_meta(file: &File, path: &Path, bytes: u64) -> Result<Meta, Failure> {
    let first = meta_at(file, path, bytes, 0)?;
    let second_at: Vec<u64> = match first {
        Some(meta) => vec![u64::from(meta.page_bytes)],
        None => (10..=20).map(|power| 1 << power).collect(),
    };
    let mut newest = first;
    for at in second_at {
        let meta = meta_at(file, path, bytes, at)?.filter(|meta| u64::from(meta.page_bytes) == at);
        newest = [newest, meta].into_iter().flatten().max_by_key(|meta| meta.txid);
    }
    newest.ok_or_else(|| Failure::damaged(path, "it is not an etcd database: no valid meta page"))
}

fn meta_at(file: &File, path: &Path, bytes: u64, at: u64) -> Result<Option<Meta>, Failure> {
    let mut page = [0; HEADER_BYTES + META_BYTES];
    if at + page.len() as u64 > bytes {
        return Ok(None);
    }
    file.read_exact_at(&mut page, at).map_err(Failure::io("cannot read", path))?;
    let is_meta = PageHeader::decode(&page).is_some_and(|header| header.flags & META_FLAG != 0);
    Ok(Meta::decode(&page[HEADER_BYTES..]).filter(|_| is_meta))
}

/// Whether a file of this length ends with a digest.
pub fn has_digest(bytes: u64) -> bool {
    bytes % SECTOR_BYTES == DIGEST_BYTES
}

/// The SHA-256 behind an image: what the file says, and what it should say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    pub stored: [u8; DIGEST_BYTES as usize],
    pub computed: [u8; DIGEST_BYTES as usize],
}

impl Digest {
    /// Reads the whole file; `None` if it has no digest.
    pub fn of(file: &File, path: &Path) -> Result<Option<Digest>, Failure> {
        let bytes = file.metadata().map_err(Failure::io("cannot read", path))?.len();
        if !has_digest(bytes) {
            return Ok(None);
        }
        let bytes = bytes - DIGEST_BYTES;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; DIGEST_CHUNK_BYTES];
        let mut at = 0;
        while at < bytes {
            let left = usize::try_from(bytes - at).unwrap_or(usize::MAX);
            let chunk = &mut buffer[..left.min(DIGEST_CHUNK_BYTES)];
            file.read_exact_at(chunk, at).map_err(Failure::io("cannot read", path))?;
            hash.update(&*chunk);
            at += chunk.len() as u64;
        }
        let mut stored = [0; DIGEST_BYTES as usize];
        file.read_exact_at(&mut stored, bytes).map_err(Failure::io("cannot read", path))?;
        Ok(Some(Digest { stored, computed: hash.finalize().into() }))
    }

    pub fn matches(&self) -> bool {
        self.stored == self.computed
    }
}

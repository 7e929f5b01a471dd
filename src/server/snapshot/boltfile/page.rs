//! The bytes of one page of etcd's database file: header, meta, leaf and branch elements.
//!
//! Reading takes any bytes and never panics: every position is checked against the page before it is used.

/// Page size of the files that we write, and of every etcd on a machine with 4 KiB pages.
pub const PAGE_BYTES: usize = 4096;

/// Length of a page header: id u64, flags u16, count u16, overflow u32.
pub const HEADER_BYTES: usize = 16;

/// Length of one element of a leaf or branch page.
pub const ELEMENT_BYTES: usize = 16;

/// Length of a bucket's value in front of an inline page: root page u64, sequence u64.
pub const BUCKET_BYTES: usize = 16;

pub const BRANCH_FLAG: u16 = 0x01;
pub const LEAF_FLAG: u16 = 0x02;
pub const META_FLAG: u16 = 0x04;

/// Marks a leaf element whose value is a bucket.
pub const BUCKET_ELEMENT: u32 = 1;

/// What the meta page says when the list of free pages is not stored: free is what cannot be reached.
pub const NO_FREELIST: u64 = u64::MAX;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;

/// Bytes of a meta page's body in front of its checksum.
const META_HASHED_BYTES: usize = 56;

/// Length of a meta page's body.
pub const META_BYTES: usize = META_HASHED_BYTES + 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    pub id: u64,
    pub flags: u16,
    /// Elements in the page.
    pub count: u16,
    /// Further pages that belong to this one.
    pub overflow: u32,
}

impl PageHeader {
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.flags.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.count.to_le_bytes());
        bytes[12..].copy_from_slice(&self.overflow.to_le_bytes());
        bytes
    }

    /// `None` when there are not enough bytes.
    pub fn decode(bytes: &[u8]) -> Option<PageHeader> {
        let low = u32_at(bytes, 8)?;
        Some(PageHeader {
            id: u64_at(bytes, 0)?,
            flags: (low & 0xffff) as u16,
            count: (low >> 16) as u16,
            overflow: u32_at(bytes, 12)?,
        })
    }
}

/// The body of a meta page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    pub page_bytes: u32,
    /// Root page of the bucket of buckets.
    pub root: u64,
    pub freelist: u64,
    /// The first page id that was never used.
    pub high_water: u64,
    pub txid: u64,
}

impl Meta {
    pub fn encode(self) -> [u8; META_BYTES] {
        let mut bytes = [0; META_BYTES];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.page_bytes.to_le_bytes());
        // Flags at 12 and the root's sequence at 24 are 0.
        bytes[16..24].copy_from_slice(&self.root.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.freelist.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.high_water.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.txid.to_le_bytes());
        let checksum = fnv1a(&bytes[..META_HASHED_BYTES]);
        bytes[META_HASHED_BYTES..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// `None` unless magic, version and checksum are right.
    pub fn decode(bytes: &[u8]) -> Option<Meta> {
        let hashed = bytes.get(..META_HASHED_BYTES)?;
        let right = u32_at(bytes, 0)? == MAGIC
            && u32_at(bytes, 4)? == VERSION
            && u64_at(bytes, META_HASHED_BYTES)? == fnv1a(hashed);
        if !right {
            return None;
        }
        Some(Meta {
            page_bytes: u32_at(bytes, 8)?,
            root: u64_at(bytes, 16)?,
            freelist: u64_at(bytes, 32)?,
            high_water: u64_at(bytes, 40)?,
            txid: u64_at(bytes, 48)?,
        })
    }
}

/// Where key and value of a leaf element are in their page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafElement {
    pub is_bucket: bool,
    pub key: std::ops::Range<usize>,
    pub value: std::ops::Range<usize>,
}

/// Element `index` of a leaf page. `None` when it, its key or its value is not inside the page.
pub fn leaf_element(page: &[u8], index: usize) -> Option<LeafElement> {
    let at = element_at(index);
    let key = at.checked_add(u32_at(page, at + 4)? as usize)?;
    let value = key.checked_add(u32_at(page, at + 8)? as usize)?;
    let end = value.checked_add(u32_at(page, at + 12)? as usize)?;
    let element =
        LeafElement { is_bucket: u32_at(page, at)? & BUCKET_ELEMENT != 0, key: key..value, value: value..end };
    (end <= page.len() && key >= HEADER_BYTES).then_some(element)
}

/// Key and child page of element `index` of a branch page. `None` when it is not inside the page.
pub fn branch_element(page: &[u8], index: usize) -> Option<(std::ops::Range<usize>, u64)> {
    let at = element_at(index);
    let key = at.checked_add(u32_at(page, at)? as usize)?;
    let end = key.checked_add(u32_at(page, at + 4)? as usize)?;
    let child = u64_at(page, at + 8)?;
    (end <= page.len() && key >= HEADER_BYTES).then_some((key..end, child))
}

fn element_at(index: usize) -> usize {
    HEADER_BYTES + index * ELEMENT_BYTES
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Root page of a bucket, and the inline page behind it.
pub fn decode_bucket(value: &[u8]) -> Option<(u64, &[u8])> {
    Some((u64_at(value, 0)?, value.get(BUCKET_BYTES..)?))
}

/// A bucket's value with root page `root`; 0 with an inline page behind it.
pub fn encode_bucket(root: u64) -> [u8; BUCKET_BYTES] {
    let mut bytes = [0; BUCKET_BYTES];
    bytes[..8].copy_from_slice(&root.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_and_header_go_both_ways() {
        let header = PageHeader { id: 7, flags: LEAF_FLAG, count: 258, overflow: 3 };
        assert_eq!(PageHeader::decode(&header.encode()), Some(header));
        let meta = Meta { page_bytes: 4096, root: 5, freelist: NO_FREELIST, high_water: 6, txid: 1 };
        let bytes = meta.encode();
        assert_eq!(Meta::decode(&bytes), Some(meta));
        for at in 0..bytes.len() {
            let mut damaged = bytes;
            damaged[at] ^= 0x10;
            assert_eq!(Meta::decode(&damaged), None, "byte {at}");
            assert_eq!(Meta::decode(&bytes[..at]), None, "{at} bytes");
        }
    }

    #[test]
    fn elements_that_reach_outside_are_refused() {
        let mut page = [0_u8; 64];
        page[16 + 4..16 + 8].copy_from_slice(&16_u32.to_le_bytes());
        page[16 + 8..16 + 12].copy_from_slice(&2_u32.to_le_bytes());
        page[16 + 12..16 + 16].copy_from_slice(&30_u32.to_le_bytes());
        let element = leaf_element(&page, 0).unwrap();
        assert_eq!((element.key, element.value), (32..34, 34..64));
        page[16 + 12] = 31;
        assert_eq!(leaf_element(&page, 0), None);
        for field in [4, 8, 12] {
            let mut page = page;
            page[16 + field..16 + field + 4].fill(0xff);
            assert_eq!(leaf_element(&page, 0), None, "field {field}");
        }
        assert_eq!(leaf_element(&page, 4000), None);
        assert_eq!(branch_element(&page, 3), None);
    }
}

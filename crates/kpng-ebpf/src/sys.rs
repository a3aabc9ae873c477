//! The system calls of BPF that the loader crate does not make: batches of elements, links, pins.
//!
//! The one module with unsafe code. Every function passes the kernel an attribute block that it owns
//! and, in it, pointers to slices that outlive the call, of the lengths that the kernel is told.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;

type Result<T> = std::result::Result<T, Errno>;

const MAP_UPDATE_ELEM: u32 = 2;
const MAP_LOOKUP_ELEM: u32 = 1;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_GET_FD_BY_ID: u32 = 13;
const MAP_GET_FD_BY_ID: u32 = 14;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_GET_NEXT_KEY: u32 = 4;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE_BATCH: u32 = 26;
const MAP_DELETE_BATCH: u32 = 27;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;

/// `union bpf_attr`, zeroed, which is what the kernel takes for absent.
struct Attributes([u8; 128]);

impl Attributes {
    fn new() -> Self {
        Self([0; 128])
    }

    fn u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn fd(self, at: usize, fd: BorrowedFd<'_>) -> Self {
        self.u32(at, fd.as_raw_fd().cast_unsigned())
    }

    fn pointer<T: ?Sized>(mut self, at: usize, value: *const T) -> Self {
        let address = value.cast::<u8>().addr() as u64;
        self.0[at..at + 8].copy_from_slice(&address.to_ne_bytes());
        self
    }

    fn read_u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    #[expect(unsafe_code, reason = "no library wraps this system call")]
    fn call(&mut self, command: u32) -> Result<i32> {
        // SAFETY: the block is ours, and as long as the kernel is told; callers keep what it points to.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        match i32::try_from(result) {
            Ok(result) if result >= 0 => Ok(result),
            _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        }
    }

    fn call_for_fd(&mut self, command: u32) -> Result<OwnedFd> {
        let fd = self.call(command)?;
        #[expect(unsafe_code, reason = "the system call returns a number")]
        // SAFETY: the kernel has just opened it for us, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Writes elements, new ones and others. Those before a failure are written.
pub(crate) fn update<const K: usize, const V: usize>(
    map: BorrowedFd<'_>,
    keys: &[[u8; K]],
    values: &[[u8; V]],
) -> Result<()> {
    assert_eq!(keys.len(), values.len(), "each key has a value");
    if let ([key], [value]) = (keys, values) {
        let attributes = Attributes::new().fd(0, map).pointer(8, key).pointer(16, value);
        return { attributes }.call(MAP_UPDATE_ELEM).map(drop);
    }
    let (mut keys, mut values) = (keys, values);
    while !keys.is_empty() {
        let count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
        let attributes = Attributes::new().pointer(16, keys.as_ptr()).pointer(24, values.as_ptr());
        let mut attributes = attributes.u32(32, count).fd(36, map);
        attributes.call(MAP_UPDATE_BATCH)?;
        let done = attributes.read_u32(32) as usize;
        (keys, values) = (&keys[done..], &values[done..]);
    }
    Ok(())
}

/// Deletes elements. What is not there is deleted already.
pub(crate) fn delete<const K: usize>(map: BorrowedFd<'_>, keys: &[[u8; K]]) -> Result<()> {
    let mut keys = keys;
    while let [key, ..] = keys {
        let count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
        let mut batch = Attributes::new().pointer(16, keys.as_ptr()).u32(32, count).fd(36, map);
        let (command, mut attributes) = if count > 1 {
            (MAP_DELETE_BATCH, batch)
        } else {
            batch = Attributes::new().fd(0, map).pointer(8, key);
            (MAP_DELETE_ELEM, batch)
        };
        let outcome = attributes.call(command);
        let done = if count > 1 { attributes.read_u32(32) as usize } else { 0 };
        match outcome {
            Ok(_) => keys = &keys[if count > 1 { done } else { 1 }..],
            Err(Errno::NOENT) => keys = &keys[(done + 1).min(keys.len())..],
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The value of an element.
pub(crate) fn lookup<const K: usize, const V: usize>(
    map: BorrowedFd<'_>,
    key: &[u8; K],
) -> Result<Option<[u8; V]>> {
    const LONGEST: usize = 64;
    let mut value = [0; LONGEST];
    assert!(V <= LONGEST, "a value of {V} bytes");
    let attributes = Attributes::new().fd(0, map).pointer(8, key);
    match attributes.pointer(16, value.as_mut_ptr()).call(MAP_LOOKUP_ELEM) {
        Ok(_) => Ok(Some(value[..V].try_into().expect("it is as long"))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// All keys of a map, as far as it does not change meanwhile.
pub(crate) fn keys<const K: usize>(map: BorrowedFd<'_>) -> Result<Vec<[u8; K]>> {
    let mut keys: Vec<[u8; K]> = Vec::new();
    loop {
        let mut next = [0; K];
        let mut attributes = Attributes::new().fd(0, map);
        if let Some(last) = keys.last() {
            attributes = attributes.pointer(8, last);
        }
        match attributes.pointer(16, next.as_mut_ptr()).call(MAP_GET_NEXT_KEY) {
            Ok(_) => keys.push(next),
            Err(Errno::NOENT) => return Ok(keys),
            Err(errno) => return Err(errno),
        }
    }
}

/// Gives all elements of a map to `visit`, in batches. Elements that come or go meanwhile may be
/// among them or not. `EINVAL` when its keys or values have other lengths.
pub(crate) fn visit<const K: usize, const V: usize>(
    map: BorrowedFd<'_>,
    mut visit: impl FnMut(&[[u8; K]], &[[u8; V]]),
) -> Result<()> {
    let (key, value, _) = map_info(map)?;
    if (key as usize, value as usize) != (K, V) {
        return Err(Errno::INVAL);
    }
    batches(map, K, V, |keys, values| visit(keys.as_chunks().0, values.as_chunks().0))
}

/// How many elements a map holds now. Takes time in proportion to that.
pub(crate) fn count(map: BorrowedFd<'_>) -> Result<usize> {
    let (key, value, _) = map_info(map)?;
    let (key, mut count) = (key as usize, 0);
    batches(map, key, value as usize, |keys, _| count += keys.len() / key)?;
    Ok(count)
}

/// Gives all keys and values, of the lengths that the map has.
fn batches(
    map: BorrowedFd<'_>,
    key: usize,
    value: usize,
    mut visit: impl FnMut(&[u8], &[u8]),
) -> Result<()> {
    const BATCH: u32 = 4096;
    /// The kernel's place in the map is as long as a key at most.
    const LONGEST: usize = 64;
    assert!(key <= LONGEST, "a key of {key} bytes");
    let (mut keys, mut values) = (vec![0; key * BATCH as usize], vec![0; value * BATCH as usize]);
    let mut place: Option<[u8; LONGEST]> = None;
    loop {
        let mut next = [0; LONGEST];
        let mut batch = Attributes::new().pointer(8, next.as_mut_ptr());
        if let Some(place) = &place {
            batch = batch.pointer(0, place);
        }
        batch = batch.pointer(16, keys.as_mut_ptr()).pointer(24, values.as_mut_ptr());
        batch = batch.u32(32, BATCH).fd(36, map);
        let outcome = batch.call(MAP_LOOKUP_BATCH);
        if let Err(errno) = outcome
            && errno != Errno::NOENT
        {
            return Err(errno);
        }
        let count = batch.read_u32(32) as usize;
        visit(&keys[..key * count], &values[..value * count]);
        if outcome.is_err() {
            return Ok(());
        }
        place = Some(next);
    }
}

/// Gives an object a name in a BPF file system, by which it lives on.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let path = c_string(path)?;
    Attributes::new().pointer(0, path.as_ptr()).fd(8, object).call(OBJ_PIN).map(drop)
}

/// The object with this name in a BPF file system, if there is one.
pub(crate) fn pinned(path: &Path) -> Result<Option<OwnedFd>> {
    let path = c_string(path)?;
    match Attributes::new().pointer(0, path.as_ptr()).call_for_fd(OBJ_GET) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn c_string(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// A control group, and the kernel's number of the hook.
    Cgroup(u32),
    /// Packets that arrive at a device.
    Ingress(u32),
    /// Packets that leave by a device.
    Egress(u32),
}

const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// Attaches a program, beside those that are there. For a device, `cgroup` does not count.
pub(crate) fn attach(
    program: BorrowedFd<'_>,
    hook: Hook,
    cgroup: BorrowedFd<'_>,
) -> Result<OwnedFd> {
    let attributes = Attributes::new().fd(0, program);
    let mut attributes = match hook {
        Hook::Cgroup(hook) => attributes.fd(4, cgroup).u32(8, hook),
        Hook::Ingress(device) => attributes.u32(4, device).u32(8, BPF_TCX_INGRESS),
        Hook::Egress(device) => attributes.u32(4, device).u32(8, BPF_TCX_EGRESS),
    };
    attributes.call_for_fd(LINK_CREATE)
}

/// Puts a program into the place of the one that is attached; no packet meets neither.
pub(crate) fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    Attributes::new().fd(0, link).fd(4, program).call(LINK_UPDATE).map(drop)
}

/// What an attachment is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    /// The control group's or the device's number; 0 once it is detached.
    pub(crate) attached_to: u64,
    /// The kernel's number of the hook.
    pub(crate) hook: u32,
    /// The kernel's number of the program.
    pub(crate) program: u32,
}

const LINK_CGROUP: u32 = 3;
const LINK_TCX: u32 = 11;

/// Asks what a link is attached to; `None` for links that we do not make.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> Result<Option<LinkInfo>> {
    let info = info::<64>(link)?;
    let number = |at| number(&info, at);
    let (attached_to, hook) = match number(0) {
        LINK_CGROUP => {
            let id = u64::from_ne_bytes(info[16..24].try_into().expect("eight bytes"));
            (id, number(24))
        }
        LINK_TCX => (number(16).into(), number(20)),
        _ => return Ok(None),
    };
    Ok(Some(LinkInfo { attached_to, hook, program: number(8) }))
}

/// The kernel's number of a program, or of a map.
pub(crate) fn id(object: BorrowedFd<'_>) -> Result<u32> {
    Ok(number(&info::<64>(object)?, 4))
}

/// The maps that a program uses: names, and the kernel's numbers.
pub(crate) fn maps_of(program: u32) -> Result<Vec<(String, u32)>> {
    /// Ours use fewer.
    const MOST: usize = 64;
    let program = Attributes::new().u32(0, program).call_for_fd(PROG_GET_FD_BY_ID)?;
    let (mut ids, mut info) = ([0_u32; MOST], [0; 64]);
    let count = u32::try_from(MOST).expect("a few");
    info[52..56].copy_from_slice(&count.to_ne_bytes());
    info[56..64].copy_from_slice(&(ids.as_mut_ptr().addr() as u64).to_ne_bytes());
    read_info(program.as_fd(), &mut info)?;
    let count = (number(&info, 52) as usize).min(MOST);
    let map = |id: &u32| {
        let map = Attributes::new().u32(0, *id).call_for_fd(MAP_GET_FD_BY_ID)?;
        let info = self::info::<80>(map.as_fd())?;
        let name = info[24..40].split(|byte| *byte == 0).next().unwrap_or_default();
        Ok((String::from_utf8_lossy(name).into_owned(), *id))
    };
    ids[..count].iter().map(map).collect()
}

/// The length of a map's keys and values, and how many elements it holds at most.
pub(crate) fn map_info(map: BorrowedFd<'_>) -> Result<(u32, u32, u32)> {
    let info = info::<80>(map)?;
    Ok((number(&info, 8), number(&info, 12), number(&info, 16)))
}

fn info<const N: usize>(object: BorrowedFd<'_>) -> Result<[u8; N]> {
    let mut info = [0; N];
    read_info(object, &mut info)?;
    Ok(info)
}

fn read_info(object: BorrowedFd<'_>, info: &mut [u8]) -> Result<()> {
    let length = u32::try_from(info.len()).expect("a few bytes");
    let attributes = Attributes::new().fd(0, object).u32(4, length);
    attributes.pointer(8, info.as_mut_ptr()).call(OBJ_GET_INFO_BY_FD).map(drop)
}

/// A number in the machine's order.
fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

impl Hook {
    /// Whether a link is attached here.
    pub(crate) fn is_of(self, info: LinkInfo, cgroup: u64) -> bool {
        let (attached_to, hook) = match self {
            Self::Cgroup(hook) => (cgroup, hook),
            Self::Ingress(device) => (device.into(), BPF_TCX_INGRESS),
            Self::Egress(device) => (device.into(), BPF_TCX_EGRESS),
        };
        (info.attached_to, info.hook) == (attached_to, hook)
    }
}

/// The cookie of the network namespace of the calling thread, as programs see it.
pub(crate) fn netns_cookie() -> Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
    #[expect(unsafe_code, reason = "rustix does not know this option")]
    // SAFETY: the kernel writes eight bytes, as many as the variable has.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(cookie)
}

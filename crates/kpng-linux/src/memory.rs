//! Memory that is free in the allocator and not for others.

/// Gives free memory back to the kernel. glibc's allocator keeps what lies between two things that
/// are in use; after a large list or a large deletion this is most of what the process has.
///
/// It takes some 10 ms for each 100 MB, so it is for after large changes only. With other allocators
/// nothing happens.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "the C library has no other interface")]
    // SAFETY: it takes a number, may be called from any thread, and touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_env = "gnu")]
    #[test]
    fn what_lies_between_things_in_use_is_given_back() {
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        const BLOCK: usize = 16 << 10;
        let mut blocks: Vec<_> = (0..4096).map(|_| Some(vec![1_u8; BLOCK])).collect();
        for (at, block) in blocks.iter_mut().enumerate() {
            if at % 64 != 0 {
                *block = None;
            }
        }
        let before = resident();
        super::give_back();
        let after = resident();
        assert!(before > after + 2048 * BLOCK, "{before} bytes before, {after} after");
        drop(blocks);
    }
}

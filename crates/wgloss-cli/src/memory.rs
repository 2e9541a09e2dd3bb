//! Whether there is memory for a job, found out before it starts: what fails to get some in the middle of
//! it, the driver for one, ends the program.

/// Whether so many bytes can be had.
pub fn has_room(bytes: u64) -> bool {
    let mut probe: Vec<u8> = Vec::new();
    let is_granted = usize::try_from(bytes).is_ok_and(|size| probe.try_reserve_exact(size).is_ok());
    // or else the compiler leaves the allocation out, and takes it as granted
    std::hint::black_box(&probe);
    is_granted && machine().is_none_or(|machine| bytes <= machine)
}

/// What the machine has: systems may grant more, and then end what uses it.
fn machine() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kibibytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    Some((kibibytes("MemTotal:")? + kibibytes("SwapTotal:").unwrap_or(0)) * 1024)
}

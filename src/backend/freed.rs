//! Blocks that were freed and wait for reuse, on any device: by size, most recently freed first, and bounded.
//!
//! What is held in all, by tensors and here, stays within [`Freed::limit`]: a quarter more than the most that tensors ever
//! held. A loop whose sizes change pays for that by asking the system; one that repeats must not, even where what it frees
//! is larger than what it holds at a time. So a size that is asked for again soon after its block was given back raises
//! the limit by that block, up to twice the peak: such a loop finds everything after some rounds.

use std::collections::{BTreeMap, VecDeque};

/// Below this, nothing is given back unasked.
const FLOOR: usize = 16 << 20;

/// Freed blocks `B` with their sizes in bytes.
#[derive(Debug)]
pub(crate) struct Freed<B> {
    /// Of each size, from the one that waits longest.
    waiting: BTreeMap<usize, VecDeque<(u64, B)>>,
    bytes: usize,
    clock: u64,
    /// When blocks of each size were given back for want of room, in bytes taken from the system.
    missed: BTreeMap<usize, VecDeque<usize>>,
    /// Bytes ever taken from the system.
    taken: usize,
    /// How far missed blocks have raised the limit.
    allowance: usize,
}

impl<B> Default for Freed<B> {
    fn default() -> Self {
        Freed { waiting: BTreeMap::new(), bytes: 0, clock: 0, missed: BTreeMap::new(), taken: 0, allowance: 0 }
    }
}

impl<B> Freed<B> {
    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Most bytes that are held in all, when tensors held `peak` at most.
    pub(crate) fn limit(&self, peak: usize) -> usize {
        let own = peak.saturating_add(peak / 4);
        own.saturating_add(self.allowance).min(peak.saturating_mul(2)).max(own).max(FLOOR)
    }

    /// The block of this size that was freed last.
    pub(crate) fn take(&mut self, size: usize) -> Option<B> {
        let (_, block) = self.waiting.get_mut(&size)?.pop_back()?;
        self.bytes -= size;
        Some(block)
    }

    /// Keeps a block.
    pub(crate) fn put(&mut self, size: usize, block: B) {
        self.clock += 1;
        self.waiting.entry(size).or_default().push_back((self.clock, block));
        self.bytes += size;
    }

    /// [`put`](Self::put), where there is memory for its note: blocks are freed also when there is none. The block otherwise.
    pub(crate) fn try_put(&mut self, size: usize, block: B) -> Result<(), B> {
        if self.waiting.get_mut(&size).is_some_and(|list| list.try_reserve(1).is_err()) {
            return Err(block);
        }
        self.put(size, block);
        Ok(())
    }

    /// The blocks that have to go before `size` bytes are taken from the system, when tensors hold `in_use` bytes and held
    /// `peak` at most: those that wait longest.
    pub(crate) fn make_room(&mut self, size: usize, in_use: usize, peak: usize) -> Vec<(usize, B)> {
        let peak = peak.max(in_use.saturating_add(size));
        // Was it a mistake to give such a block back? Only if that was not long ago.
        if let Some(when) = self.missed.get_mut(&size).and_then(VecDeque::pop_back)
            && self.taken.wrapping_sub(when) <= peak.saturating_mul(4)
        {
            self.allowance = self.allowance.saturating_add(size).min(peak);
        }
        self.taken = self.taken.wrapping_add(size);
        let limit = self.limit(peak);
        let mut out = Vec::new();
        while in_use.saturating_add(self.bytes).saturating_add(size) > limit {
            let oldest = self.waiting.iter().filter_map(|(size, list)| Some((list.front()?.0, *size))).min();
            let Some((_, old)) = oldest else { break };
            let Some((_, block)) = self.waiting.get_mut(&old).and_then(VecDeque::pop_front) else { break };
            self.bytes -= old;
            let missed = self.missed.entry(old).or_default();
            missed.push_back(self.taken);
            if missed.len() > 64 {
                missed.pop_front();
            }
            out.push((old, block));
        }
        out
    }

    /// Every block that waits. No list of them: they are taken when there is no memory.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = (usize, B)> + use<B> {
        self.bytes = 0;
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_iter().flat_map(|(size, list)| list.into_iter().map(move |(_, b)| (size, b)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that takes and frees blocks of a simulated system.
    #[derive(Default)]
    struct Program {
        freed: Freed<()>,
        in_use: usize,
        peak: usize,
        held: usize,
        most: usize,
        fresh: usize,
    }

    impl Program {
        fn alloc(&mut self, size: usize) {
            if self.freed.take(size).is_none() {
                for (size, ()) in self.freed.make_room(size, self.in_use, self.peak) {
                    self.held -= size;
                }
                self.held += size;
                self.fresh += 1;
            }
            self.in_use += size;
            self.peak = self.peak.max(self.in_use);
            self.most = self.most.max(self.held);
            assert_eq!(self.held, self.in_use + self.freed.bytes());
        }

        fn free(&mut self, size: usize) {
            self.in_use -= size;
            self.freed.put(size, ());
        }
    }

    const MB: usize = 1 << 20;

    #[test]
    fn sizes_that_grow_cost_a_quarter_more_than_the_largest() {
        let mut p = Program::default();
        for i in 0..200 {
            p.alloc((4 + i) * 4 * MB);
            p.free((4 + i) * 4 * MB);
        }
        assert!(p.most <= p.peak + p.peak / 4, "{} held for {}", p.most, p.peak);
    }

    #[test]
    fn a_loop_of_two_phases_asks_for_nothing_after_some_rounds() {
        // Each phase has sizes of its own, so that everything is twice the peak.
        let mut p = Program::default();
        for round in 0..8 {
            if round == 4 {
                p.fresh = 0;
            }
            for phase in 0..2 {
                let sizes: Vec<usize> = (0..10).map(|i| (20 + 2 * i + phase) * MB).collect();
                sizes.iter().for_each(|&s| p.alloc(s));
                sizes.iter().for_each(|&s| p.free(s));
            }
        }
        assert_eq!(p.fresh, 0);
        assert!(p.most <= 2 * p.peak, "{} held for {}", p.most, p.peak);
    }

    #[test]
    fn random_sizes_stay_within_twice_the_peak() {
        let mut p = Program::default();
        for i in 0..5000u64 {
            let size = (1 + crate::rng::Key::new(3).below(i, 300) as usize) * MB;
            p.alloc(size);
            p.free(size);
        }
        assert!(p.most <= 2 * p.peak, "{} held for {}", p.most, p.peak);
    }

    #[test]
    fn small_programs_keep_everything() {
        let mut p = Program::default();
        for round in 0..3 {
            (1..100).for_each(|i| {
                p.alloc(i * 1024);
                p.free(i * 1024);
            });
            assert_eq!(p.fresh, 99, "round {round}");
        }
        assert_eq!(p.freed.take_all().count(), 99);
        assert_eq!(p.freed.bytes(), 0);
    }
}

//! Random inputs, the same on every run.

/// A splitmix64 generator (Steele, Lea and Flood, 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

/// Rows of logits by their nature: each hides what another shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// Normally distributed, deviation 3.
    Normal,
    /// One class far above the others: losses and gradients down to 1e-30, where cancellation shows.
    Confident,
    /// Rising or falling steadily: the maximum moves, and sums have terms of like size.
    Ramp,
    /// About half of the classes at -inf, never all.
    Masked,
    /// Offsets up to 1e6, huge, tiny and equal logits.
    Extreme,
}

impl Logits {
    /// All of them.
    pub const ALL: [Logits; 5] =
        [Logits::Normal, Logits::Confident, Logits::Ramp, Logits::Masked, Logits::Extreme];
}

impl Random {
    /// The same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * 2_f64.powi(-53)
    }

    /// Uniform in `0..bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.uniform() * bound as f64) as usize
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// One of the items.
    pub fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Normally distributed values: upstream gradients and weights, negative ones among them.
    pub fn normals(&mut self, count: usize, deviation: f64) -> Vec<f32> {
        (0..count).map(|_| (self.normal() * deviation) as f32).collect()
    }

    /// Values uniform in `[low, high)`.
    pub fn uniforms(&mut self, count: usize, low: f64, high: f64) -> Vec<f32> {
        (0..count).map(|_| (low + (high - low) * self.uniform()) as f32).collect()
    }

    /// Weights whose sums are exact in any order, so that the divisor of a mean has no error of its
    /// own: eighths, negative ones and zeros among them.
    pub fn eighths(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.normal() * 8.0).round() as f32 / 8.0).collect()
    }

    /// Classes in `0..classes`, replaced by `ignored` with probability `share`.
    pub fn targets(&mut self, count: usize, classes: usize, ignored: i32, share: f64) -> Vec<i32> {
        let mut target = || {
            if self.chance(share) { ignored } else { self.below(classes) as i32 }
        };
        (0..count).map(|_| target()).collect()
    }

    /// `rows` rows of `classes` logits each, row after row.
    pub fn logits(&mut self, kind: Logits, rows: usize, classes: usize) -> Vec<f32> {
        (0..rows).flat_map(|_| self.row(kind, classes)).collect()
    }

    fn row(&mut self, kind: Logits, classes: usize) -> Vec<f32> {
        let mut row = self.normals(classes, 3.0);
        let first = self.below(classes);
        match kind {
            Logits::Normal => {}
            Logits::Confident => {
                let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                row[first] = max + (5.0 + 60.0 * self.uniform()) as f32;
            }
            Logits::Ramp => {
                let (height, offset) = (self.normal() * 20.0, self.normal() * 10.0);
                let step = height / classes as f64;
                row = (0..classes).map(|c| (offset + step * c as f64) as f32).collect();
            }
            Logits::Masked => {
                for (c, x) in row.iter_mut().enumerate() {
                    if c != first && self.chance(0.5) {
                        *x = f32::NEG_INFINITY;
                    }
                }
            }
            Logits::Extreme => {
                let offset = self.pick(&[0.0, 1e6, -1e6, 1e4, -88.0]);
                // not subnormal, which devices may read as a tie with 0
                let scale = self.pick(&[0.0, 1e-34, 1e-6, 1.0, 30.0, 1e3]);
                row.iter_mut().for_each(|x| *x = *x * scale + offset);
                if self.chance(0.2) {
                    row[first] = self.pick(&[1e30, -1e30]);
                }
            }
        }
        row
    }
}

//! 16-bit storage: what every pattern is read as and every number written as, odd numbers of
//! classes, rows that share words, vocabularies with padded rows.

use wgloss::half::{bf16, f16};
use wgloss::{Args, Array, BceWithLogits, DType, Huber, L1, Pass, Reduction};
use wgloss_testing::devices::{Device, devices, gpu};
use wgloss_testing::memory::{Job, Places, Where, array, check_in, every_op, judge};

/// A 16-bit type, by its patterns.
#[derive(Debug, Clone, Copy)]
struct Half {
    dtype: DType,
    number: fn(u16) -> f32,
    /// Rounded to nearest even.
    pattern: fn(f32) -> u16,
}

const HALVES: [Half; 2] = [
    Half {
        dtype: DType::F16,
        number: |bits| f16::from_bits(bits).to_f32(),
        pattern: |x| f16::from_f32(x).to_bits(),
    },
    Half {
        dtype: DType::Bf16,
        number: |bits| bf16::from_bits(bits).to_f32(),
        pattern: |x| bf16::from_f32(x).to_bits(),
    },
];

impl Half {
    fn array(self, patterns: &[u16]) -> Array<'static> {
        let shape = [patterns.len()];
        match self.dtype {
            DType::F16 => {
                Array::from_vec(patterns.iter().map(|&p| f16::from_bits(p)).collect(), &shape)
            }
            _ => Array::from_vec(patterns.iter().map(|&p| bf16::from_bits(p)).collect(), &shape),
        }
        .unwrap()
    }
}

fn patterns(array: &Array<'_>) -> Vec<u16> {
    array.data().bytes().chunks_exact(2).map(|b| u16::from_ne_bytes([b[0], b[1]])).collect()
}

/// Whether a result is the number that it should be. NaN need not keep its payload, nor 0 its sign,
/// and an f32 subnormal may be flushed to 0, as WGSL allows.
fn is_same(got: f32, want: f32) -> bool {
    got == want || got.is_nan() && want.is_nan() || want.is_subnormal() && got == 0.0
}

/// All patterns, in groups of four, and with one more, by the element.
fn every_pattern() -> [Vec<u16>; 2] {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let odd = [&[0][..], &all].concat();
    [all, odd]
}

fn zeros(count: usize, dtype: DType) -> Array<'static> {
    array(&vec![0.0; count], &[count], dtype)
}

#[test]
fn every_pattern_is_read_as_its_number() {
    let Some(gpu) = &gpu() else { return };
    let op = L1::default().reduction(Reduction::None);
    for half in HALVES {
        for all in every_pattern() {
            let zeros = zeros(all.len(), half.dtype);
            // as the input and as the target: |x - 0| and |0 - x|
            for (input, target) in [(half.array(&all), zeros.clone()), (zeros, half.array(&all))] {
                let args = Args::new(input).target(target);
                let out = gpu.block_on(gpu.forward(&op, &args)).unwrap();
                let loss = out.loss().unwrap().to_f32();
                for (&pattern, got) in all.iter().zip(loss) {
                    let want = (half.number)(pattern).abs();
                    assert!(is_same(got, want), "{} {pattern:#06x}: {got:e}", half.dtype);
                }
            }
        }
    }
}

#[test]
fn every_pattern_is_written_as_it_was() {
    // Within delta, Huber's gradient is the distance; beyond it delta, which 16 bits hold as
    // infinity.
    let Some(gpu) = &gpu() else { return };
    let op = Huber::default().delta(f32::MAX.into()).reduction(Reduction::Sum);
    for half in HALVES {
        for all in every_pattern() {
            let args = Args::new(half.array(&all)).target(zeros(all.len(), half.dtype));
            for args in [args.clone(), args.in_place()] {
                let out = gpu.block_on(gpu.backward(&op, &args)).unwrap();
                for (&pattern, got) in all.iter().zip(patterns(out.grad().unwrap())) {
                    let [got, want] = [got, pattern].map(half.number);
                    assert!(is_same(got, want), "{} {pattern:#06x}: {got:e}", half.dtype);
                }
            }
        }
    }
}

/// Numbers between those that the type holds: every midpoint of two neighbours, its neighbours in
/// f32, and what is too large.
fn between(half: Half) -> Vec<f32> {
    let mut numbers = vec![1e-45, f32::MIN_POSITIVE, 65504.0, 65520.0, 1e6, 3.3961e38, f32::MAX];
    for pattern in (0..=u16::MAX >> 1).take_while(|&p| (half.number)(p).is_finite()) {
        let number = (half.number)(pattern);
        let next = (half.number)(pattern + 1);
        let middle = match half.dtype {
            // the last one's next would be 2^16
            DType::F16 => (number + next.min(65536.0)) / 2.0,
            _ => f32::from_bits(number.to_bits() + 0x8000),
        };
        let bits = middle.to_bits();
        numbers.extend([bits - 1, bits, bits + 1].map(f32::from_bits));
    }
    let negative: Vec<_> = numbers.iter().map(|x| -x).collect();
    [numbers, negative].concat()
}

#[test]
fn numbers_are_rounded_to_nearest_even() {
    // With logits and targets 0, the gradient is half of the weight times the upstream gradient.
    let Some(gpu) = &gpu() else { return };
    let op = BceWithLogits::default().reduction(Reduction::Sum);
    for half in HALVES {
        let (large, small): (Vec<_>, Vec<_>) =
            between(half).into_iter().partition(|x| x.abs() >= 1.0);
        // exactly: nothing overflows on the way, and nothing small loses its last bit
        for (numbers, factor, upstream) in [(large, 1.0, 2.0), (small, 2.0, 1.0)] {
            // in groups of four and by the element
            let fours = numbers.len().next_multiple_of(4);
            for count in [fours, fours + 1] {
                let mut weights: Vec<_> = numbers.iter().map(|x| factor * x).collect();
                weights.resize(count, 0.0);
                let args = Args::new(zeros(count, half.dtype))
                    .target(zeros(count, half.dtype))
                    .weight(Array::from(&weights))
                    .upstream(Array::scalar(upstream));
                let out = gpu.block_on(gpu.backward(&op, &args)).unwrap();
                for (&x, got) in numbers.iter().zip(patterns(out.grad().unwrap())) {
                    let [got, want] = [got, (half.pattern)(x)].map(half.number);
                    // what is subnormal may be flushed before it is rounded, too
                    let is_flushed = x.is_subnormal() && got == 0.0;
                    let what = half.dtype;
                    assert!(
                        is_same(got, want) || is_flushed,
                        "{what} {x:e}: {got:e}, not {want:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn not_a_number_is_written_as_such() {
    // Rounding could carry a payload of ones over into the sign, or a small one be cut off to infinity.
    let Some(gpu) = &gpu() else { return };
    let op = BceWithLogits::default().reduction(Reduction::Sum);
    let all = [0x7fff_ffff, 0xffff_ffff, 0x7fff_8000, 0x7fc0_0001, 0xffc0_0000, 0x7f80_0001_u32];
    for half in HALVES {
        // in groups of four and by the element
        for count in [8, 9] {
            let weights: Vec<_> =
                all.iter().cycle().take(count).copied().map(f32::from_bits).collect();
            let args = Args::new(zeros(count, half.dtype))
                .target(zeros(count, half.dtype))
                .weight(Array::from(&weights));
            // as device tensors: the host would refuse them
            let args = gpu.block_on(gpu.upload_args(&args)).unwrap();
            let out = gpu.block_on(gpu.backward(&op, &args)).unwrap();
            let grad = gpu.block_on(gpu.read(out.grad().unwrap())).unwrap();
            for (got, weight) in patterns(&grad).into_iter().zip(weights) {
                let number = (half.number)(got);
                assert!(number.is_nan(), "{} {:#x}: {number:e}", half.dtype, weight.to_bits());
            }
        }
    }
}

/// The ops over rows of classes, of [`every_op`].
fn row_ops(shape: &[usize], dtype: DType) -> Vec<Job> {
    let mut jobs = every_op(shape, dtype, Reduction::None, Pass::ForwardBackward);
    jobs.retain(|job| job.op.kind().family.has_rows());
    jobs
}

#[test]
fn an_odd_vocabulary_contiguous_or_padded() {
    // GPT-2's 50,257 classes: every other row begins in the middle of a word. Padded to 50,304.
    let Some(gpu) = &gpu() else { return };
    for dtype in [DType::F16, DType::Bf16] {
        for job in row_ops(&[3, 50_257], dtype) {
            judge(&job, &job.run_apart(gpu).into_iter().collect());
            check_in(Where::OneBuffer, gpu, &job, Places { unit: 1, padding: 47 });
            check_in(Where::Apart, gpu, &job, Places { unit: 8, padding: 47 });
        }
    }
}

#[test]
fn rows_that_share_words_on_every_team() {
    // An odd number of classes, and classes that lie apart: words are written by two rows, whoever
    // comes first.
    for Device { name, gpu } in devices() {
        println!("kernels: {name}");
        for shape in [&[4099, 7][..], &[150, 9, 5]] {
            for job in row_ops(shape, DType::F16) {
                let got = job.run_apart(&gpu);
                assert_eq!(job.run_apart(&gpu), got, "{}", job.name());
                judge(&job, &got.into_iter().collect());
            }
        }
    }
}

//! Element-wise losses: everything that they share.

use bytemuck::{Pod, Zeroable};

use super::sum::{Terms, Total};
use super::{
    FLOATS, Op, expect_args, expect_dtype, expect_finite, expect_shape, expect_unit_interval,
    expect_upstream, grad_layout, grad_view, loss_layout, refuse_batch_mean, sealed,
};
#[cfg(feature = "cpu")]
use crate::cpu;
use crate::kernel::{self, File, Kernel};
use crate::limits::{Chunk, Split};
use crate::program::{Binding, Port, Program, View, first_index};
use crate::reference::{self, Values};
use crate::shape::{self, Layout, MAX_DIMS};
use crate::tuning::DeviceProfile;
use crate::{Args, Array, DType, Output, Pass, Reduction, Result, Role};

/// `Params` of `shaders/family/elements.wgsl`, after the offsets.
#[allow(missing_docs)] // the shader has them
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct ElementParams {
    pub vec4s: u32,
    pub per_team: u32,
    pub teams: u32,
    pub row_elements: u32,
    pub dims: u32,
    pub scale: f32,
    pub own: [u32; 2],
    pub settings: [f32; 3],
    pub first: u32,
    pub dim: [[u32; 4]; MAX_DIMS],
}

/// The bindings of kernels over elements.
mod ports {
    use crate::program::Port;

    pub const INPUT: Port = Port::read(1);
    pub const TARGETS: Port = Port::read(2);
    pub const WEIGHT: Port = Port::read(3);
    pub const UPSTREAM: Port = Port::read(4);
    pub const GRAD: Port = Port::write(5);
    pub const RESULTS: Port = Port::write(6);
    pub const POS_WEIGHT: Port = Port::read(8);
}

/// A loss at one element, and its derivative by the input, in float64: each as the terms whose sum
/// it is, since the error of a result is promised in units of their absolute values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    pub loss: [f64; 2],
    pub grad: [f64; 3],
}

/// An element-wise loss or map: all that it does not share with the others.
pub trait Elementwise: std::fmt::Debug + Send + Sync + sealed::Sealed {
    /// The stem.
    const NAME: &'static str;
    /// The shader with the two hooks, `loss` and `gradient`.
    const SHADER: File;
    /// Whether there are targets: maps have none.
    const TARGET: bool = true;
    /// Whether it is a loss of `x - t`, which is NaN where both are the same infinity.
    const OF_DIFFERENCE: bool = false;
    /// Which of `weight` and `pos_weight` it takes.
    const WEIGHTS: &'static [Role] = &[];
    /// Whether inputs and targets must lie in `[0, 1]`.
    const UNIT_INTERVAL: bool = false;
    /// Whether [`Reduction::BatchMean`] is one of its reductions.
    const BATCH_MEAN: bool = false;

    /// How the elements' losses become the result.
    fn reduction(&self) -> Reduction;

    /// Refuses options outside their range.
    fn check_options(&self) -> Result<()> {
        Ok(())
    }

    /// Numbers that the shader finds in `params.settings`.
    fn settings(&self) -> [f64; 3] {
        [0.0; 3]
    }

    /// Values of the shader's own `override` declarations.
    fn constants(&self) -> Vec<(&'static str, u32)> {
        vec![]
    }

    /// Whether the gradient at NaN is 0 instead of NaN.
    fn zero_gradient_at_nan(&self) -> bool {
        false
    }

    /// The definition in float64, before the element's weight. NaN in `x` and `t`, and in the
    /// difference of infinities, is dealt with by the caller.
    fn reference(&self, x: f64, t: f64, pos_weight: f64) -> Point;

    /// The shader's two hooks for the CPU: loss and derivative in f32, likewise; branch-free and
    /// `#[inline(always)]`, so that loops over it become vector code.
    #[cfg(feature = "cpu")]
    fn point(&self, x: f32, t: f32, pos_weight: f32) -> cpu::Point;
}

/// What the losses' sum is divided by: a mean over 0 is NaN.
pub(crate) fn divisor(reduction: Reduction, input: &[usize]) -> f64 {
    match reduction {
        Reduction::None | Reduction::Sum => 1.0,
        Reduction::Mean => input.iter().product::<usize>() as f64,
        // as in PyTorch, a 0-dimensional input is a batch of one
        Reduction::BatchMean => input.first().map_or(1.0, |&size| size as f64),
    }
}

impl<E: Elementwise> Op for E {
    fn name(&self) -> &'static str {
        E::NAME
    }

    fn outputs(&self, pass: Pass, args: &Args<Layout>) -> Result<Output<Layout>> {
        let describe = || format!("{}.{}", E::NAME, pass.name());
        self.check_options()?;
        if !E::BATCH_MEAN {
            refuse_batch_mean(self.reduction())?;
        }
        let target: &[_] = if E::TARGET { &[Role::Target] } else { &[] };
        let upstream: &[_] = if pass.has_grad() { &[Role::Upstream] } else { &[] };
        expect_args(pass, args, &[target, E::WEIGHTS, upstream].concat(), describe)?;

        let input = args.input();
        expect_dtype(Role::Input, input, &FLOATS)?;
        if E::TARGET {
            let target = args.required(Role::Target, describe)?;
            expect_dtype(Role::Target, target, &[input.dtype()])?;
            expect_shape(Role::Target, target, input.shape())?;
        }
        for role in [Role::Weight, Role::PosWeight] {
            if let Some(weight) = args.get(role) {
                expect_dtype(role, weight, &[DType::F32])?;
            }
        }
        Weights::of(args)?;
        expect_upstream(args, self.reduction(), input.shape())?;
        let result = pass.has_loss().then(|| match E::TARGET {
            true => loss_layout(self.reduction(), input.shape()),
            false => Layout::new(input.shape(), input.dtype()),
        });
        let role = if E::TARGET { Role::Loss } else { Role::Output };
        Ok(Output::default().with_some(role, result).with_some(Role::Grad, grad_layout(pass, args)))
    }

    fn check_values(&self, args: &Args<Array<'_>>) -> Result<()> {
        expect_finite(Role::Weight, args.get(Role::Weight))?;
        expect_finite(Role::PosWeight, args.get(Role::PosWeight))?;
        if E::UNIT_INTERVAL {
            expect_unit_interval(Role::Input, args.get(Role::Input))?;
            expect_unit_interval(Role::Target, args.get(Role::Target))?;
        }
        Ok(())
    }

    fn program(
        &self,
        pass: Pass,
        args: &Args<Layout>,
        outputs: &Output<Layout>,
        profile: &DeviceProfile,
    ) -> Result<Program> {
        let mut program = Program::new(&profile.limits);
        let reduction = self.reduction();
        let input = args.input();
        let divisor = divisor(reduction, input.shape());
        let label = format!("{}.{}.{}", E::NAME, pass.name(), input.dtype());
        let is_reduced = reduction != Reduction::None && pass.has_loss();
        let argument = |role| args.get(role).map(|layout| View::of(role, layout));
        let upstream = argument(Role::Upstream).filter(|_| pass.has_grad());
        let upstream_is_tensor = reduction == Reduction::None && upstream.is_some();
        let result = if E::TARGET { Role::Loss } else { Role::Output };
        let result = outputs.get(result).map(|layout| View::of(result, layout));

        // all that has an element for each of the input's; in place, the input is bound as the gradient
        let tensors: Vec<(Port, View)> = [
            (ports::INPUT, argument(Role::Input).filter(|_| !args.in_place)),
            (ports::TARGETS, argument(Role::Target)),
            (ports::UPSTREAM, upstream.clone().filter(|_| upstream_is_tensor)),
            (ports::GRAD, grad_view(args, outputs)),
            (ports::RESULTS, result.clone().filter(|_| !is_reduced)),
        ]
        .into_iter()
        .filter_map(|(port, view)| Some((port, view?)))
        .collect();

        let weights = Weights::of(args)?;
        let layouts = || tensors.iter().map(|(_, view)| &view.layout);
        let all: Vec<_> = layouts().chain(weights.own.into_iter().flatten()).collect();
        let split = Split::of_elements(&profile.limits, input, &all)?;
        let vec4 = split.are_vec4(layouts());
        let by = profile.for_elements();
        let kernel = Kernel {
            label,
            files: [
                &[
                    kernel::ELEMENTS,
                    E::SHADER,
                    kernel::CONTROL,
                    kernel::check_elements(E::UNIT_INTERVAL),
                    kernel::upstream(args.get(Role::Upstream).is_some(), !upstream_is_tensor),
                    kernel::results(E::TARGET),
                ][..],
                &kernel::storage(input.dtype(), vec4, args.in_place),
            ]
            .concat(),
            entry_point: pass.name(),
            constants: [
                vec![
                    ("HAS_TARGET", E::TARGET.into()),
                    ("OF_DIFFERENCE", E::OF_DIFFERENCE.into()),
                    ("ZERO_GRADIENT_AT_NAN", self.zero_gradient_at_nan().into()),
                    ("WEIGHTED", args.get(Role::Weight).is_some().into()),
                    ("POS_WEIGHTED", args.get(Role::PosWeight).is_some().into()),
                    ("REDUCED", is_reduced.into()),
                    ("OUTER_ROWS", (!split.is_flat()).into()),
                ],
                self.constants(),
            ]
            .concat(),
            defines: kernel::tile(by.tile),
            read_write: 0,
        };

        // one loss a team
        let vec4s_per_team = u64::from(by.per_team / 4);
        let vec4s_of = |chunk: &Chunk| chunk.rows * chunk.inner.div_ceil(4);
        let teams_of = |chunk: &Chunk| vec4s_of(chunk).div_ceil(vec4s_per_team);
        let chunks: Vec<_> = split.chunks().collect();
        let all_teams: u64 = chunks.iter().map(teams_of).sum();
        let sums = is_reduced.then(|| program.scratch_f32(all_teams));
        let mut done = 0;
        for chunk in &chunks {
            let teams = teams_of(chunk);
            let params = ElementParams {
                vec4s: vec4s_of(chunk) as u32,
                per_team: vec4s_per_team as u32,
                teams: teams as u32,
                row_elements: chunk.inner as u32,
                dims: weights.dims.len() as u32,
                scale: (1.0 / divisor) as f32,
                own: weights.own.map(|own| own.is_some().into()),
                settings: self.settings().map(|setting| setting as f32),
                first: first_index(chunk.first),
                dim: weights.dims_from(chunk.first),
            };
            let of_tensors = tensors.iter().map(|(port, view)| {
                Binding::part(*port, view, chunk.range(view.layout.row_stride() as u64))
            });
            let mut bindings: Vec<_> = of_tensors.collect();
            let given = [(ports::WEIGHT, Role::Weight), (ports::POS_WEIGHT, Role::PosWeight)];
            for ((port, role), own) in given.into_iter().zip(weights.own) {
                let range = [chunk.first, chunk.elements(), 0];
                bindings.push(match own {
                    Some(own) => Binding::part(port, &View::of(role, own), range),
                    None => Binding::all_or_placeholder(port, argument(role).as_ref()),
                });
            }
            if !E::TARGET {
                bindings.push(Binding::placeholder(ports::TARGETS));
            }
            if let Some(sums) = &sums {
                bindings.push(Binding::part(ports::RESULTS, sums, [done, teams, 0]));
            }
            if let Some(upstream) = upstream.as_ref().filter(|_| !upstream_is_tensor) {
                bindings.push(Binding::all(ports::UPSTREAM, upstream));
            }
            if E::UNIT_INTERVAL {
                bindings.push(Binding::control());
            }
            program.dispatch_teams(by.launch, teams, kernel.clone(), &params, bindings)?;
            done += teams;
        }
        if let (Some(sums), Some(loss)) = (sums, result) {
            let total = match reduction {
                Reduction::None | Reduction::Sum => Total::Sum(loss),
                Reduction::Mean | Reduction::BatchMean => Total::SumOver(loss, divisor as f32),
            };
            let terms = Terms::values(sums, vec![[0, all_teams]]);
            program.sum(profile.for_sum(), terms, &total)?;
        }
        if E::UNIT_INTERVAL && !chunks.is_empty() {
            program.keep_first_fault();
        }
        Ok(program)
    }

    fn reference(&self, pass: Pass, args: &Args<Array<'_>>) -> Output<Values> {
        reference::elements(self, pass, args)
    }

    #[cfg(feature = "cpu")]
    fn cpu(&self, args: &Args<Array<'_>>, output: &mut Output<Array<'static>>) -> Result<()> {
        cpu::elements(self, args, output)
    }
}

/// The shapes of `weight` and `pos_weight`, 0-dimensional where they were not given.
fn weight_shapes(args: &Args<Layout>) -> [(&'static str, &[usize]); 2] {
    [Role::Weight, Role::PosWeight]
        .map(|role| (role.name(), args.get(role).map_or(&[][..], Layout::shape)))
}

/// The dimensions that `weight` and `pos_weight` are broadcast over, innermost first.
#[cfg(feature = "cpu")]
pub(crate) fn weight_dims(args: &Args<Layout>) -> Result<Vec<shape::Dim<2>>> {
    shape::broadcast(args.input().shape(), weight_shapes(args))
}

/// How `weight` and `pos_weight` lie over the input.
struct Weights<'a> {
    /// Those of which each element has one of its own.
    own: [Option<&'a Layout>; 2],
    /// The dimensions that the others are broadcast over, innermost first.
    dims: Vec<shape::Dim<2>>,
}

impl<'a> Weights<'a> {
    fn of(args: &'a Args<Layout>) -> Result<Self> {
        let input = args.input();
        let shapes = weight_shapes(args);
        shape::broadcast(input.shape(), shapes)?;
        let own = [Role::Weight, Role::PosWeight]
            .map(|role| args.get(role).filter(|weight| weight.elements() == input.elements()));
        let others = std::array::from_fn(|k| match own[k] {
            Some(_) => (shapes[k].0, &[][..]),
            None => shapes[k],
        });
        let mut dims = shape::broadcast(input.shape(), others)?;
        while dims.pop_if(|dim| dim.strides == [0, 0]).is_some() {}
        Ok(Weights { own, dims })
    }

    /// The dimensions as a dispatch needs them that begins with the element `first`.
    fn dims_from(&self, first: u64) -> [[u32; 4]; MAX_DIMS] {
        // Dimensions longer than one dispatch are clamped: the shader needs only the distance to the
        // dimension's end, because a weight that varies along it would not fit a binding.
        const MANY: u64 = 1 << 31;
        let mut dims = [[0; 4]; MAX_DIMS];
        let mut rest = first;
        for (to, dim) in dims.iter_mut().zip(&self.dims) {
            let size = dim.size as u64;
            let left = (size - rest % size).min(MANY);
            let [weight, pos_weight] = dim.strides.map(|stride| stride as u32);
            let clamped = size.min(MANY);
            *to = [clamped as u32, weight, pos_weight, (clamped - left) as u32];
            rest /= size;
        }
        dims
    }
}

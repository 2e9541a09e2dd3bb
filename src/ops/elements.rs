//! Element-wise losses: everything that they share.

use std::any::TypeId;
use std::fmt;

use bytemuck::{Pod, Zeroable};

use super::options::{self, Family, Info, Key, Kind, Numbers, Opt, Others, Target, Value, Weight};
use super::sum::{Terms, Total};
use super::{
    FLOATS, Op, expect_args, expect_dtype, expect_finite, expect_shape, expect_unit_interval,
    expect_upstream, grad_layout, grad_view, loss_layout, sealed,
};
#[cfg(feature = "cpu")]
use crate::cpu;
use crate::kernel::{self, Access, File as Shader, Kernel};
use crate::limits::{Chunk, Split};
use crate::program::{Binding, Port, Program, View, first_index};
use crate::reference::{self, Tolerance, Values};
use crate::shape::{self, Layout, MAX_DIMS};
use crate::tuning::DeviceProfile;
use crate::{Args, Array, DType, Error, Output, Pass, Reduction, Result, Role};

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
    pub settings: [f32; 8],
    pub first: u32,
    pub unused: [u32; 3],
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

/// A loss at one element, and its derivative by the input, in float64.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    pub(crate) loss: Sum,
    pub(crate) grad: Sum,
}

/// A sum, and T: that of its terms' absolute values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sum {
    pub value: f64,
    pub magnitude: f64,
}

impl Sum {
    fn of(terms: &[f64]) -> Self {
        Sum { value: terms.iter().sum(), magnitude: terms.iter().map(|term| term.abs()).sum() }
    }
}

impl Point {
    /// Each as the terms whose sum it is: the error of a result is promised in units of the sum of
    /// their absolute values, since terms that cancel leave no more than that.
    pub fn new<const L: usize, const G: usize>(loss: [f64; L], grad: [f64; G]) -> Self {
        Point { loss: Sum::of(&loss), grad: Sum::of(&grad) }
    }
}

/// How many numbers a shader finds in `params.settings`, at most.
pub(crate) const SETTINGS: usize = 8;

/// An element-wise loss or map: two hooks in WGSL, the numbers that they take, and the definition in
/// float64. Every pass, reduction, storage type, weight and upstream gradient follows, on the GPU, on
/// the CPU and in the [`reference`](mod@crate::reference), since all that implements this is an
/// [`Op`].
///
/// The losses of this crate are made so, and a caller's own can be. The squared error with a weight for
/// targets that are missed from below:
///
/// ```
/// use wgloss::custom::{Elementwise, Point, Shader};
/// use wgloss::{Args, Array, Pass, Reduction, reference};
///
/// #[derive(Debug, Clone)]
/// struct Lopsided {
///     below: f64,
/// }
///
/// impl Elementwise for Lopsided {
///     const NAME: &'static str = "lopsided";
///     const SHADER: Shader = Shader::new(
///         "
///         fn slope(d: vec4<f32>) -> vec4<f32> {
///             return select(d, params.settings[0].x * d, d < vec4(0.0));
///         }
///         fn loss(e: Elements) -> vec4<f32> {
///             let d = e.x - e.t;
///             return d * slope(d);
///         }
///         fn gradient(e: Elements) -> vec4<f32> {
///             return 2.0 * slope(e.x - e.t);
///         }",
///     );
///     const OF_DIFFERENCE: bool = true;
///
///     fn reduction(&self) -> Reduction {
///         Reduction::Mean
///     }
///
///     fn settings(&self) -> Vec<f64> {
///         vec![self.below]
///     }
///
///     fn reference(&self, x: f64, t: f64, _pos_weight: f64) -> Point {
///         let d = x - t;
///         let slope = if d < 0.0 { self.below * d } else { d };
///         Point::new([d * slope], [2.0 * slope])
///     }
/// }
///
/// let args = Args::new(Array::from(&[1.0_f32, 3.0])).target(Array::from(&[2.0_f32, 1.0]));
/// let out = reference::run(&Lopsided { below: 3.0 }, Pass::ForwardBackward, &args)?;
/// assert_eq!(out.loss()?.values, [(3.0 + 4.0) / 2.0]);
/// assert_eq!(out.grad()?.values, [-3.0, 2.0]);
/// # Ok::<_, wgloss::Error>(())
/// ```
///
/// `examples/custom_loss.rs` holds such a loss to the promise, on the GPU and on the CPU: nobody else
/// can know whether its hooks compute what its definition says.
///
/// # Hooks
/// ```wgsl
/// fn loss(e: Elements) -> vec4<f32>
/// fn gradient(e: Elements) -> vec4<f32>   // the derivative of the loss with respect to the input
/// ```
/// Both are of four elements: inputs `e.x`, targets `e.t` and, where it is one of [`WEIGHTS`], the
/// weights of the positive term `e.pos_weight` (1 without them). Weight, reduction and upstream gradient
/// are applied afterwards, as is NaN where the input or the target is NaN. [`settings`] lie in
/// `params.settings`, four by four: the first is `params.settings[0].x`, the fifth
/// `params.settings[1].x`.
///
/// The text may declare `override`s (see [`constants`]) and functions of its own, and call those of
/// `shaders/shared/math.wgsl`, whose accuracy is stated there: `exp4`, `ln4`, `power4`, `sigmoid4`,
/// `tanh4`, `log1p_unit`, `exp_nonpositive`, `zero_wins`, `nan` and the others. WGSL's own `exp` and
/// `log` are less accurate than the promise.
///
/// A text that does not compile is [`Error::Validation`](crate::Error::Validation) when it is planned.
/// The caller's text is compiled with wgpu's run-time checks, which the crate's own kernels do
/// without: a place outside an array is then not read, and no loop goes on for ever.
///
/// [`WEIGHTS`]: Self::WEIGHTS
/// [`settings`]: Self::settings
/// [`constants`]: Self::constants
pub trait Elementwise: fmt::Debug + Clone + Send + Sync + 'static {
    /// Its name: in snake case, for labels and errors.
    const NAME: &'static str;
    /// What it is, in a line.
    const ABOUT: &'static str = "";
    /// The two hooks.
    const SHADER: Shader;
    /// Whether there are targets: maps have none.
    const TARGET: bool = true;
    /// Whether it is a loss of `x - t`, which is NaN where both are the same infinity.
    const OF_DIFFERENCE: bool = false;
    /// Whether the gradient depends on the input. Where it does not, backward does not read the input,
    /// whose numbers `gradient` then finds to be 0, and a NaN there leaves the gradient alone.
    const GRAD_READS_INPUT: bool = true;
    /// Whether a gradient beyond f32 is proportional to input and target: it is computed of quarters then,
    /// because it may be within f32 after the division by a mean's divisor.
    const PROPORTIONAL: bool = false;
    /// Which of `weight` and `pos_weight` it takes.
    const WEIGHTS: &'static [Role] = &[];
    /// Whether inputs and targets must lie in `[0, 1]`.
    const UNIT_INTERVAL: bool = false;
    /// Its options. An op without them can neither list nor set them by name.
    #[doc(hidden)]
    const OPTIONS: &'static [Opt<Self>] = &[];

    /// How the elements' losses become the result. [`Reduction::None`] for maps.
    fn reduction(&self) -> Reduction;

    /// Refuses options that do not go together, or that are outside their range.
    ///
    /// # Errors
    /// [`Error::Value`] that names the option.
    fn check_options(&self) -> Result<()> {
        Ok(())
    }

    /// Numbers that the shader finds in `params.settings`, rounded to f32: at most eight.
    fn settings(&self) -> Vec<f64> {
        vec![]
    }

    /// Values of the shader's own `override` declarations.
    fn constants(&self) -> Vec<(&'static str, u32)> {
        vec![]
    }

    /// Whether the gradient at NaN is 0 instead of NaN.
    fn zero_gradient_at_nan(&self) -> bool {
        false
    }

    /// How many times as large as promised of all ops errors may be: above 1 for options that make it so.
    fn error_factor(&self) -> f64 {
        1.0
    }

    /// What inputs and targets stand for, and what becomes of other targets: so tests and benches draw
    /// them.
    fn numbers(&self) -> (Numbers, Numbers, Others) {
        (Numbers::Any, Numbers::Any, Others::Taken)
    }

    /// The definition in float64, before the element's weight. NaN in `x` and `t`, and in the
    /// difference of infinities, is dealt with by the caller.
    fn reference(&self, x: f64, t: f64, pos_weight: f64) -> Point;

    /// The shader's two hooks for the CPU: loss and derivative in f32, likewise; branch-free and
    /// `#[inline(always)]`, so that loops over it become vector code.
    #[cfg(feature = "cpu")]
    #[doc(hidden)]
    fn point(&self, x: f32, t: f32, pos_weight: f32) -> cpu::Point {
        let Point { loss, grad } = self.reference(x.into(), t.into(), pos_weight.into());
        cpu::Point { loss: loss.value as f32, grad: grad.value as f32 }
    }
}

/// Refuses options that kernels cannot have.
fn check<E: Elementwise>(op: &E) -> Result<()> {
    options::check(op, E::OPTIONS)?;
    op.check_options()?;
    match op.settings().len() {
        0..=SETTINGS => Ok(()),
        count => Err(Error::Value {
            argument: "settings",
            expected: format!("at most {SETTINGS} numbers"),
            actual: count.to_string(),
        }),
    }
}

/// The settings as shaders have them.
fn settings<E: Elementwise>(op: &E) -> [f32; SETTINGS] {
    let mut settings = [0.0; SETTINGS];
    for (to, setting) in settings.iter_mut().zip(op.settings()) {
        *to = setting as f32;
    }
    settings
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

impl<E: Elementwise> sealed::Sealed for E {}

impl<E: Elementwise> Op for E {
    fn name(&self) -> &'static str {
        E::NAME
    }

    fn about(&self) -> &'static str {
        E::ABOUT
    }

    fn kind(&self) -> Kind {
        let (input, target, others) = self.numbers();
        Kind {
            family: if E::TARGET { Family::ElementLoss } else { Family::ElementMap },
            input,
            target: E::TARGET.then_some(Target::Numbers(target, others)),
            weight: E::WEIGHTS.contains(&Role::Weight).then_some(Weight::Elements),
            pos_weight: E::WEIGHTS.contains(&Role::PosWeight),
            fused_in_place: true,
            grad_reads_input: E::GRAD_READS_INPUT || E::UNIT_INTERVAL,
            row_outputs: false,
        }
    }

    fn options(&self) -> Vec<Info> {
        options::infos(self, E::OPTIONS)
    }

    fn set(&mut self, name: &str, value: Value) -> Result<()> {
        options::set(self, E::OPTIONS, name, value)
    }

    fn boxed(&self) -> Box<dyn Op> {
        Box::new(self.clone())
    }

    fn key(&self) -> Key {
        let mut values = options::values(self, E::OPTIONS);
        values.push(Value::Reduction(self.reduction()));
        values.push(Value::Bool(self.zero_gradient_at_nan()));
        values.extend(self.settings().into_iter().map(Value::Number));
        Key { op: TypeId::of::<E>(), values, constants: self.constants() }
    }

    fn outputs(&self, pass: Pass, args: &Args<Layout>) -> Result<Output<Layout>> {
        let describe = || format!("{}.{}", E::NAME, pass.name());
        check(self)?;
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
        expect_upstream(args, self.reduction(), input.shape(), input.dtype())?;
        if !E::TARGET && pass.has_grad() {
            args.required(Role::Upstream, describe)?;
        }
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

        let access = match Op::kind(self).grad_reads_input || pass.has_loss() {
            true => Access::of(args.in_place),
            false => Access::Unread,
        };
        // all that has an element for each of the input's; in place, the input is bound as the gradient
        let tensors: Vec<(Port, View)> = [
            (ports::INPUT, argument(Role::Input).filter(|_| access == Access::Apart)),
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
                &kernel::storage(input.dtype(), vec4, access),
            ]
            .concat(),
            entry_point: pass.name(),
            constants: [
                vec![
                    ("HAS_TARGET", E::TARGET.into()),
                    ("OF_DIFFERENCE", E::OF_DIFFERENCE.into()),
                    ("GRAD_READS_INPUT", E::GRAD_READS_INPUT.into()),
                    ("PROPORTIONAL", E::PROPORTIONAL.into()),
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
                settings: settings(self),
                first: first_index(chunk.first),
                unused: [0; 3],
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

    fn promise(&self, role: Role) -> Tolerance {
        Tolerance::of(role).times(self.error_factor())
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

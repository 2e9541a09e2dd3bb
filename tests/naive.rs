//! Ops with other programs than their own: naive formulas put in place of ours, each of which must be
//! noticed by cases that ours pass (what no test notices, someone may one day write), and the kernels
//! that other devices would be given.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use wgloss::internals::{
    Define, DeviceClass, DeviceProfile, ElementParams, File, Kernel, Limits, Offsets, Program,
    RowParams, Sealed, Slot, SumParams, Tile,
};
use wgloss::options::{Info, Key, Kind, Value};
use wgloss::reference::{self, Tolerance, Values};
use wgloss::{
    Args, Array, CrossEntropy, DType, Gpu, GpuOptions, Layout, LogSoftmax, Mse, Op, Output, Pass,
    Reduction, Result, Role, Softmax,
};
use wgloss_testing::devices::open;
use wgloss_testing::random::Random;
use wgloss_testing::table;

/// A formula in place of another.
#[derive(Debug)]
struct Naive {
    /// What is naive about it.
    what: &'static str,
    /// The file below `shaders/`.
    path: &'static str,
    /// Texts that occur in it once, and what replaces them.
    replacements: &'static [(&'static str, &'static str)],
    /// The cases that notice.
    by: By,
}

/// Cases that notice a naive formula.
#[derive(Debug, Clone, Copy)]
enum By {
    /// Those of the table by op, options and the beginning of their name.
    Table(&'static str, &'static str, &'static str),
    /// The mean of a million equal losses.
    EqualLosses,
}

const NAIVE: &[Naive] = &[
    Naive {
        what: "cross entropy as logsumexp - x[y]",
        path: "shared/row_state.wgsl",
        replacements: &[
            (
                "partial.margin_sum = cost4(vec4(target_weight), partial.m, vec4(x)).x;",
                "partial.margin_sum = -target_weight * x;",
            ),
            (
                "target_sum * log1p(stats.denom_minus_1) + stats.margin_sum",
                "target_sum * (stats.m + log(1.0 + stats.denom_minus_1)) + stats.margin_sum",
            ),
        ],
        by: By::Table("cross_entropy", "classes", "none confident"),
    },
    Naive {
        what: "ln(1 + s) of a row as log(1 + s)",
        path: "shared/math.wgsl",
        replacements: &[(
            "select(log1p_unit(vec4(min(u, 1.0))).x, log(1.0 + u), u > 1.0)",
            "log(1.0 + u)",
        )],
        by: By::Table("cross_entropy", "classes", "none confident"),
    },
    Naive {
        what: "the sum of exponentials, less 1 for the maximum",
        path: "shared/row_state.wgsl",
        // through its bits, or Mesa would take the 1 off first
        replacements: &[(
            "partial.exp_sum_below + f32(u32(partial.max_count) - 1u)",
            "bitcast<f32>(bitcast<u32>(partial.exp_sum_below + partial.max_count)) - 1.0",
        )],
        by: By::Table("cross_entropy", "classes", "none confident"),
    },
    Naive {
        what: "cross entropy's gradient at the target as p - 1",
        path: "shared/row_state.wgsl",
        replacements: &[("e > vec4(gradient.threshold)", "e > vec4(2.0)")],
        by: By::Table("cross_entropy", "classes", "none confident"),
    },
    Naive {
        what: "logits scaled before their maximum is subtracted",
        path: "shared/row_state.wgsl",
        replacements: &[(
            "return (x - m) * params.scale;",
            "return x * params.scale - vec4(m * params.scale);",
        )],
        by: By::Table("cross_entropy", "classes, scale, z-loss, row outputs", "sum extreme"),
    },
    Naive {
        what: "a cap's slope as 1 - tanh^2",
        path: "shared/math.wgsl",
        replacements: &[(
            "return 4.0 * e * inverse * inverse;",
            "let t = tanh4(x);\n    return 1.0 - t * t;",
        )],
        by: By::Table("cross_entropy", "classes, scale, softcap, row outputs", "none confident"),
    },
    Naive {
        what: "ignored rows multiplied by 0",
        path: "family/rows.wgsl",
        // a 0 that compilers do not see
        replacements: &[(
            "    if row.kind != ROW_KEPT {\n        loss = select(0.0, nan(), row.kind == ROW_BAD);",
            "    if row.kind != ROW_KEPT {\n        loss *= params.smoothing;",
        )],
        by: By::Table("cross_entropy", "classes, scale, z-loss, row outputs", "sum extreme"),
    },
    Naive {
        what: "masked logits multiplied by their cost",
        path: "shared/row_state.wgsl",
        replacements: &[(
            "select(cost4(a, (*partial).m, x), vec4(0.0), masked | !costs)",
            "cost4(a, (*partial).m, x)",
        )],
        by: By::Table("cross_entropy", "probabilities", "none random"),
    },
    Naive {
        what: "partial maxima from -inf on",
        path: "shared/row_tiles.wgsl",
        replacements: &[("most = vec4(LOWEST);", "most = vec4(-positive_infinity());")],
        by: By::Table("cross_entropy", "classes", "sum broken"),
    },
    Naive {
        what: "softmax's gradient as p (g - sum p g)",
        path: "ops/softmax.wgsl",
        replacements: &[
            ("zero_wins(e, vec4(g_k) - g)", "e * g"),
            ("(p, (g - prepared.x) + prepared.y)", "(p, g - prepared.y)"),
        ],
        by: By::Table("softmax", "", "confident"),
    },
    Naive {
        what: "log-softmax as x - logsumexp",
        path: "ops/log_softmax.wgsl",
        replacements: &[(
            "(tile[k] - stats.m) - log1p(stats.denom_minus_1)",
            "tile[k] - logsumexp(stats)",
        )],
        by: By::Table("log_softmax", "", "extreme"),
    },
    Naive {
        what: "sigmoid's slope as s (1 - s)",
        path: "ops/sigmoid.wgsl",
        replacements: &[(
            "sigmoid4(e.x) * sigmoid4(-e.x)",
            "sigmoid4(e.x) * (1.0 - sigmoid4(e.x))",
        )],
        by: By::Table("sigmoid", "", "confident"),
    },
    Naive {
        what: "logsigmoid as the log of sigmoid",
        path: "ops/logsigmoid.wgsl",
        replacements: &[(
            "-(log1p_unit(exp_nonpositive(-abs(e.x))) + max(-e.x, vec4(0.0)))",
            "ln4(sigmoid4(e.x))",
        )],
        by: By::Table("logsigmoid", "", "confident"),
    },
    Naive {
        what: "BCE with logits as max(x, 0) - x t + log(1 + e^-|x|)",
        path: "ops/bce_with_logits.wgsl",
        replacements: &[(
            "weighted_target_product(e.pos_weight, e.t, q + max(-e.x, vec4(0.0)))\n        + zero_wins(1.0 - e.t, q + max(e.x, vec4(0.0)))",
            "max(e.x, vec4(0.0)) - e.x * e.t + log(1.0 + exp(-abs(e.x)))",
        )],
        by: By::Table("bce_with_logits", "", "none confident"),
    },
    Naive {
        what: "BCE with logits' gradient as sigmoid(x) - t",
        path: "ops/bce_with_logits.wgsl",
        replacements: &[(
            "(1.0 - e.t) * sigmoid4(e.x) - e.pos_weight * e.t * sigmoid4(-e.x)",
            "sigmoid4(e.x) - e.t",
        )],
        by: By::Table("bce_with_logits", "", "none confident"),
    },
    Naive {
        what: "ln(1 + u) of elements as log(1 + u)",
        path: "shared/math.wgsl",
        replacements: &[("return fma(s * z, p, s + s);", "return log(1.0 + u);")],
        by: By::Table("bce_with_logits", "", "none confident"),
    },
    Naive {
        what: "a weight of 0 times an infinity",
        path: "shared/math.wgsl",
        replacements: &[(
            "select(factor * value, vec4(0.0), factor == vec4(0.0))",
            "factor * value",
        )],
        by: By::Table("bce_with_logits", "weight, pos_weight", "none masked"),
    },
    Naive {
        what: "a test for NaN by x != x",
        path: "shared/math.wgsl",
        replacements: &[(
            "return (bitcast<vec4<u32>>(x) & vec4(0x7fffffffu)) > vec4(0x7f800000u);",
            "return x != x;",
        )],
        by: By::Table("bce_with_logits", "", "sum broken"),
    },
    Naive {
        what: "BCE by the built-in log, of x and of 1 - x",
        path: "ops/bce.wgsl",
        replacements: &[
            (
                "return select(ln4(1.0 - x), log1p_unit(-min(x, vec4(0.5))), x <= vec4(0.5));",
                "return log(1.0 - x);",
            ),
            ("max(ln4(e.x), vec4(-100.0))", "max(log(e.x), vec4(-100.0))"),
        ],
        by: By::Table("bce", "", "none confident"),
    },
    Naive {
        what: "what focal loss misses as 1 - p_t",
        path: "ops/sigmoid_focal.wgsl",
        replacements: &[(
            "p * (1.0 - e.t) + p_of_negative * e.t;",
            "1.0 - (p * e.t + p_of_negative * (1.0 - e.t));",
        )],
        by: By::Table("sigmoid_focal", "", "none confident"),
    },
    Naive {
        what: "1 - alpha in f32",
        path: "ops/sigmoid_focal.wgsl",
        replacements: &[("params.settings[0].y * (1.0 - e.t)", "(1.0 - alpha) * (1.0 - e.t)")],
        by: By::Table("sigmoid_focal", "alpha 0.999, gamma 5", "none random"),
    },
    Naive {
        what: "the logarithm of a Poisson distribution's rate as that of the rounded sum",
        path: "ops/poisson_nll.wgsl",
        replacements: &[(
            "return select(ln4(rate), log1p_unit(select(vec4(0.0), difference, is_near_1)), is_near_1);",
            "return ln4(rate);",
        )],
        by: By::Table("poisson_nll", "rates", "none extreme"),
    },
    Naive {
        what: "soft margin as log(1 + exp(-t x))",
        path: "ops/soft_margin.wgsl",
        replacements: &[(
            "max(z, vec4(0.0)) + log1p_unit(exp_nonpositive(-abs(z)))",
            "log(1.0 + exp(z))",
        )],
        by: By::Table("soft_margin", "", "none confident"),
    },
    Naive {
        what: "a square of differences as x^2 - 2 x t + t^2",
        path: "ops/mse.wgsl",
        replacements: &[("return d * d;", "return (e.x * e.x - 2.0 * e.x * e.t) + e.t * e.t;")],
        by: By::Table("mse", "", "none random"),
    },
    Naive {
        what: "one running sum for a member's losses",
        path: "family/elements.wgsl",
        replacements: &[
            ("fn store_team_sum(", "var<private> running: f32;\n\nfn store_team_sum("),
            ("vec4(add_up(total))", "vec4(running)"),
            (
                "return select(vec4(0.0), value, vec4(0u, 1u, 2u, 3u) <= vec4(at.last));",
                "for (var i = 0u; i <= at.last; i += 1u) {\n            running += value[i];\n        }\n        return value;",
            ),
        ],
        by: By::EqualLosses,
    },
];

/// What hardware may get right: it may keep NaN in comparisons, have a logarithm that is good near 1,
/// and so many members that none has many losses to add up.
const RIGHT_ON_HARDWARE: [&str; 3] = [
    "a test for NaN by x != x",
    "BCE by the built-in log, of x and of 1 - x",
    "one running sum for a member's losses",
];

impl Naive {
    /// The file with the replacements made.
    fn put_into(&self, file: File) -> File {
        let mut text = file.text().to_string();
        for (ours, naive) in self.replacements {
            assert_eq!(text.matches(ours).count(), 1, "{}: {ours} in {}", self.what, self.path);
            text = text.replace(ours, naive);
        }
        file.replaced(text.leak())
    }

    /// What the first case says that notices it, and that ours passes.
    fn noticed(&self, gpu: &Gpu) -> Option<String> {
        // once a kernel had ours
        let naive_file = OnceLock::new();
        let naive = |op: &dyn Op, pass, args: &_| {
            let program = |op: &dyn Op, pass, args: &_, outputs: &_, profile: &DeviceProfile| {
                let program = op.program(pass, args, outputs, profile)?;
                let change = |file: File| match file.path() == self.path {
                    true => *naive_file.get_or_init(|| self.put_into(file)),
                    false => file,
                };
                rebuilt(&program, &profile.limits, change)
            };
            run(gpu, &Changed { op, program }, pass, args)
        };
        let ours = |op: &dyn Op, pass, args: &_| run(gpu, op, pass, args);
        let noticed = |case: &dyn Fn(Run<'_>) -> Outcome| {
            let error = case(&naive).err()?;
            case(&ours).unwrap_or_else(|e| panic!("{}: ours is off too: {e}", self.what));
            Some(error)
        };
        let noticed = match self.by {
            By::EqualLosses => noticed(&mean_of_equal_losses),
            By::Table(op, options, name) => {
                let rows = table::table();
                let rows = rows.iter().filter(|row| row.op() == op && row.options == options);
                let cases = rows.flat_map(table::Row::cases);
                cases
                    .filter(|case| case.name().starts_with(name) && case.elements() < 10_000)
                    .find_map(|case| noticed(&|run| check(&case, run)))
            }
        };
        assert!(naive_file.get().is_some(), "{}: no kernel has {}", self.what, self.path);
        noticed
    }
}

/// The same program with other files. Its copies come after its dispatches, which do not read what
/// they write.
fn rebuilt(program: &Program, limits: &Limits, change: impl Fn(File) -> File) -> Result<Program> {
    let mut changed = Program::new(limits);
    for layout in program.scratch_layouts() {
        changed.scratch(layout.clone());
    }
    for step in program.steps() {
        let files: Vec<_> = step.kernel.files.iter().copied().map(&change).collect();
        let kernel = Kernel { files, ..step.kernel.clone() };
        let (bindings, workgroups) = (step.bindings.clone(), step.workgroups);
        macro_rules! dispatch {
            ($params:ty) => {{
                let params = &step.params[size_of::<Offsets>()..];
                let params: $params = bytemuck::pod_read_unaligned(params);
                changed.dispatch(kernel, &params, bindings, workgroups)?
            }};
        }
        match step.kernel.files[0].path() {
            "family/rows.wgsl" | "family/row_maps.wgsl" | "family/gather.wgsl" => {
                dispatch!(RowParams)
            }
            "family/sum.wgsl" => dispatch!(SumParams),
            "family/elements.wgsl" => dispatch!(ElementParams),
            "family/status.wgsl" => changed.keep_first_fault(),
            other => panic!("no params known for {other}"),
        }
    }
    for &copy in program.copies() {
        assert!(matches!((copy.from, copy.to), (Slot::Scratch(_), Slot::Tensor(_))), "{copy:?}");
        changed.copy(copy);
    }
    let all_params =
        |program: &Program| -> Vec<_> { program.steps().map(|step| step.params.clone()).collect() };
    assert_eq!(all_params(&changed), all_params(program));
    Ok(changed)
}

type Outcome = std::result::Result<(), String>;
type Run<'a> = &'a dyn Fn(&dyn Op, Pass, &Args<Array<'static>>) -> Output<Array<'static>>;

/// Runs a pass: naive or not, it compiles.
fn run(gpu: &Gpu, op: &dyn Op, pass: Pass, args: &Args<Array<'static>>) -> Output<Array<'static>> {
    gpu.block_on(gpu.run(op, pass, args)).unwrap_or_else(|error| panic!("{op:?}: {error}"))
}

/// A case of the table, under every pass.
fn check(case: &table::Case<'_>, run: Run<'_>) -> Outcome {
    let results = case.check(|op, pass, args| Ok(run(op, pass, args))).unwrap();
    for (pass, result) in table::PASSES.into_iter().zip(results) {
        result.map_err(|error| format!("{}: {}: {error}", case.name(), pass.name()))?;
    }
    Ok(())
}

fn mean_of_equal_losses(run: Run<'_>) -> Outcome {
    let (op, shape) = (Mse::default(), [1_000_000]);
    let of = |value: f32| Array::from_vec(vec![value; shape[0]], &shape).unwrap();
    let args = Args::new(of(0.3)).target(of(0.0));
    let want = reference::run(&op, Pass::Forward, &args).unwrap();
    let got = run(&op, Pass::Forward, &args);
    reference::compare(&got.loss().unwrap().to_f32(), want.loss().unwrap(), Tolerance::LOSS)
        .map_err(|error| error.to_string())?;
    Ok(())
}

fn roles<T>(output: &Output<T>) -> Vec<Role> {
    output.iter().map(|(role, _)| role).collect()
}

/// Rows that a team can hardly hold, or has to read twice, under every pass.
fn long_rows(classes: usize, run: Run<'_>) -> Outcome {
    let mut random = Random::new(classes as u64);
    let shape = [3, classes];
    let mut float = || Array::from_vec(random.normals(3 * classes, 3.0), &shape).unwrap();
    let input = Args::new(float());
    let last = classes as i32 - 1;
    let target = Array::from_vec(vec![0, last / 3 * 2, last], &[3]).unwrap();
    let of_elements = float();
    let of_rows = Array::from_vec(vec![0.7, -1.9, 3.0], &[3]).unwrap();
    let cross_entropy = CrossEntropy::default().reduction(Reduction::None);
    let calls: [(&dyn Op, _, _); 4] = [
        (&cross_entropy, input.clone().target(target), &of_rows),
        (&cross_entropy, input.clone().target(float()), &of_rows),
        (&Softmax::default(), input.clone(), &of_elements),
        (&LogSoftmax::default(), input, &of_elements),
    ];
    for (op, args, upstream) in calls {
        for pass in table::PASSES {
            let args = match pass {
                Pass::Forward => args.clone(),
                _ => args.clone().upstream(upstream.clone()),
            };
            let (got, want) = (run(op, pass, &args), reference::run(op, pass, &args).unwrap());
            assert_eq!(roles(&got), roles(&want));
            for (role, want) in want.iter() {
                let promise = match role {
                    // upstream gradients have a deviation of 3, or are up to 3
                    Role::Grad => Tolerance::GRAD.scaled(3.0),
                    Role::Loss | Role::Output => Tolerance::LOSS,
                    role => panic!("nobody asked for {role}"),
                };
                let what = |error| format!("{}, {}, {role}: {error}", op.name(), pass.name());
                let got = got.get(role).unwrap().to_f32();
                reference::compare(&got, want, promise).map_err(what)?;
            }
        }
    }
    Ok(())
}

/// An op with another program than its own.
struct Changed<'a, P> {
    op: &'a dyn Op,
    program: P,
}

impl<P> std::fmt::Debug for Changed<'_, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.op.fmt(f)
    }
}

impl<P> Sealed for Changed<'_, P> {}

impl<P> Op for Changed<'_, P>
where
    P: Fn(&dyn Op, Pass, &Args<Layout>, &Output<Layout>, &DeviceProfile) -> Result<Program>
        + Send
        + Sync,
{
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn about(&self) -> &'static str {
        self.op.about()
    }

    fn kind(&self) -> Kind {
        self.op.kind()
    }

    fn options(&self) -> Vec<Info> {
        self.op.options()
    }

    fn set(&mut self, name: &str, value: Value) -> Result<()> {
        panic!("{name} is not to become {value}: the op is somebody else's")
    }

    fn boxed(&self) -> Box<dyn Op> {
        self.op.boxed()
    }

    fn key(&self) -> Key {
        // its program is nobody else's
        static COUNT: AtomicU32 = AtomicU32::new(0);
        self.op.key().with("changed", COUNT.fetch_add(1, Ordering::Relaxed))
    }

    fn outputs(&self, pass: Pass, args: &Args<Layout>) -> Result<Output<Layout>> {
        self.op.outputs(pass, args)
    }

    fn check_values(&self, args: &Args<Array<'_>>) -> Result<()> {
        self.op.check_values(args)
    }

    fn program(
        &self,
        pass: Pass,
        args: &Args<Layout>,
        outputs: &Output<Layout>,
        profile: &DeviceProfile,
    ) -> Result<Program> {
        (self.program)(self.op, pass, args, outputs, profile)
    }

    fn reference(&self, pass: Pass, args: &Args<Array<'_>>) -> Output<Values> {
        self.op.reference(pass, args)
    }

    #[cfg(feature = "cpu")]
    fn cpu(&self, args: &Args<Array<'_>>, output: &mut Output<Array<'static>>) -> Result<()> {
        self.op.cpu(args, output)
    }
}

#[test]
fn naive_formulas_are_noticed() {
    let Some(gpu) = open(&GpuOptions::default()) else { return };
    let mut unnoticed = Vec::new();
    for naive in NAIVE {
        match naive.noticed(&gpu) {
            Some(message) => println!("{}\n    {message}", naive.what),
            None => unnoticed.push(naive),
        }
    }
    for what in RIGHT_ON_HARDWARE {
        assert!(NAIVE.iter().any(|naive| naive.what == what), "{what}");
    }
    unnoticed.retain(|naive| gpu.is_software() || !RIGHT_ON_HARDWARE.contains(&naive.what));
    assert!(unnoticed.is_empty(), "{unnoticed:#?} would do");
}

/// What is chosen on hardware (more of a row held, longer rows by workgroups, neighbours on
/// neighbouring fours) computes the same wherever it runs: here too.
#[test]
fn kernels_chosen_on_other_devices_keep_the_promise() {
    let Some(gpu) = open(&GpuOptions::default()) else { return };
    let tiles = Mutex::new(HashSet::new());
    for class in [DeviceClass::Discrete, DeviceClass::Integrated] {
        let elsewhere = |op: &dyn Op, pass, args: &_| {
            let program = |op: &dyn Op, pass, args: &_, outputs: &_, profile: &DeviceProfile| {
                let elsewhere = DeviceProfile { class, ..profile.clone() };
                let program = op.program(pass, args, outputs, &elsewhere)?;
                let found = program.steps().filter_map(|step| tile(&step.kernel));
                tiles.lock().unwrap().extend(found);
                Ok(program)
            };
            run(&gpu, &Changed { op, program }, pass, args)
        };
        for row in table::table() {
            let is_tried = match (row.op(), row.options) {
                ("cross_entropy", options) => {
                    ["classes", "probabilities, weights, smoothing"].contains(&options)
                }
                ("softmax" | "bce_with_logits", options) => options.is_empty(),
                _ => false,
            };
            let cases = row.cases();
            let cases = cases.iter().filter(|case| {
                let is_reduced = ["mean", "sum"].iter().any(|start| case.name().starts_with(start));
                case.dtype() == DType::F32 && !is_reduced && case.elements() < 10_000
            });
            for case in cases.filter(|_| is_tried) {
                check(case, &elsewhere).unwrap_or_else(|error| panic!("{class:?}: {error}"));
            }
        }
        // a subgroup of four holds the first whole, one of eight holds half of the second
        for classes in [253, 1021] {
            long_rows(classes, &elsewhere)
                .unwrap_or_else(|error| panic!("{class:?}, {classes} classes: {error}"));
        }
    }
    // rows held whole, as far as each class of devices goes, and rows read twice
    let tiles = tiles.into_inner().unwrap();
    for vec4s in [16, 8] {
        let tile = Tile { vec4s, contiguous: 1, whole_row: true };
        assert!(tiles.contains(&tile), "{vec4s}: {tiles:?}");
    }
    assert!(tiles.iter().any(|tile| !tile.whole_row && tile.contiguous == 1), "{tiles:?}");
}

/// What a member keeps in registers at a time, of kernels that walk tiles.
fn tile(kernel: &Kernel) -> Option<Tile> {
    let define =
        |name| kernel.defines.iter().find(|define| define.0 == name).map(|define| define.1);
    match ["TILE_VEC4S", "CONTIGUOUS_VEC4S", "ROW_IN_REGISTERS"].map(define) {
        [
            Some(Define::Number(vec4s)),
            Some(Define::Number(contiguous)),
            Some(Define::Switch(whole_row)),
        ] => Some(Tile { vec4s, contiguous, whole_row }),
        _ => {
            assert!(kernel.defines.is_empty(), "{kernel:?}");
            None
        }
    }
}

//! Devices: shared or not, several, lost; and what they tell of faults.

use burn::nn::loss::Reduction as BurnReduction;
use burn::tensor::{DType, Int, Tensor, TensorData};
use wgloss::custom::{Elementwise, Point, Shader};
use wgloss::{CrossEntropy, Reduction};
use wgloss_burn::{
    Args, BinaryCrossEntropyLossConfig, CrossEntropyLossConfig, Error, check, loss, share,
};

use crate::common::{another, autodiff, classes, device, expect_close, normal, values};

fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Result<Tensor<1>, Error> {
    loss(&CrossEntropy::default(), Args::new(logits).classes(targets))
}

/// One test, since it makes devices, and lavapipe has little memory for many.
#[test]
fn a_device_is_shared_used_and_lost() {
    let (device, setup) = another();
    let logits = || Tensor::<2>::from_floats([[1.0, 2.0], [3.0, -1.0]], &device);
    let targets = |classes: [i32; 2]| Tensor::<1, Int>::from_ints(classes, &device);

    // not shared: an error that says what to call, at the first use; burn's modules panic
    let refused = cross_entropy(logits(), targets([0, 1])).unwrap_err();
    assert!(matches!(&refused, Error::NotShared { .. }));
    let told = refused.to_string();
    assert!(
        told.contains("wgloss_burn::init()") && told.contains("wgloss_burn::share()"),
        "{told}"
    );
    assert!(matches!(check(&device), Err(Error::NotShared { .. })));
    let module = CrossEntropyLossConfig::new().init(&device);
    let panics = || module.forward(logits(), targets([0, 1]));
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).unwrap_err();
    assert_eq!(panic.downcast_ref::<String>(), Some(&told));

    // several devices, each with its own tensors and faults
    share(&device, &setup).unwrap();
    let first = self::device();
    let on_first = cross_entropy(
        Tensor::from_floats([[1.0, 2.0], [3.0, -1.0]], &first),
        Tensor::from_ints([0, 1], &first),
    );
    let value = values(cross_entropy(logits(), targets([0, 1])).unwrap());
    assert_eq!(value, values(on_first.unwrap()));
    let mixed = cross_entropy(logits(), Tensor::from_ints([0, 1], &first));
    assert!(matches!(mixed, Err(Error::OtherDevice { argument: "target", .. })), "{mixed:?}");
    let value = values(cross_entropy(logits(), targets([0, 7])).unwrap());
    assert!(value[0].is_nan(), "{value:?}");
    check(&first).unwrap();
    let fault = wgloss::Error::Class { row: 1, class: 7, classes: 2 };
    assert_eq!(check(&device), Err(Error::Wgloss(fault)));
    check(&device).unwrap();

    // lost: both sides tell, and nothing panics on burn's threads
    let kept = (logits(), targets([0, 1]));
    setup.device.destroy();
    let _ = setup.device.poll(wgloss::wgpu::PollType::wait_indefinitely());
    let lost = cross_entropy(kept.0, kept.1);
    assert!(lost.is_ok(), "burn computes later: {lost:?}");
    for _ in 0..2 {
        let told = check(&device).unwrap_err();
        assert!(matches!(told, Error::Wgloss(wgloss::Error::DeviceLost(_))), "{told}");
        assert!(device.sync().is_err(), "burn's own callback is in its place");
    }
    // the others are not
    check(&first).unwrap();
}

#[test]
fn faults_are_kept_until_they_are_asked_for() {
    // a device's status is shared by all that runs on it, so that this one needs its own
    let (device, setup) = another();
    share(&device, &setup).unwrap();
    let leaf = normal([4, 3], &device.clone().autodiff()).require_grad();
    let y = |classes: [i32; 4]| Tensor::<1, Int>::from_ints(classes, &device);
    let op = CrossEntropy::default().reduction(Reduction::None);
    let run = |classes: [i32; 4]| -> Tensor<1> {
        loss(&op, Args::new(leaf.clone()).classes(y(classes))).unwrap()
    };
    let value = run([0, 3, 1, -1]);
    let grad = values(leaf.grad(&value.clone().sum().backward()).unwrap());
    let nan: Vec<_> = values(value).iter().map(|value| value.is_nan()).collect();
    assert_eq!(nan, [false, true, false, true]);
    assert!(grad[3..6].iter().all(|g| g.is_nan()) && grad[..3].iter().all(|g| g.is_finite()));
    for _ in 0..3 {
        run([0, 1, 2, -100]);
    }
    let fault = wgloss::Error::Class { row: 1, class: 3, classes: 3 };
    assert_eq!(check(&device), Err(Error::Wgloss(fault)));
    assert_eq!(check(&device), Ok(()));
}

/// Tensors of other threads' streams, of which each has pending work of its own.
#[test]
fn threads() {
    let device = autodiff();
    for round in 0..12 {
        let (rows, columns) = (64 + round % 5 * 37, 100 + round % 3 * 411);
        let of = device.clone();
        let make = std::thread::spawn(move || {
            let x = normal([rows, columns], &of);
            ((x + 1.0) * 0.5 + 0.25, classes([rows], columns, &of))
        });
        let (x, y) = make.join().unwrap();
        let threads = [0, 1, 2].map(|who| {
            let (x, y, device) = (x.clone(), y.clone(), device.clone());
            std::thread::spawn(move || {
                let leaf = x.require_grad();
                let logits = leaf.clone() * 1.5;
                let loss = match who {
                    0 => burn::nn::loss::CrossEntropyLossConfig::new()
                        .init(&device)
                        .forward(logits, y),
                    _ => cross_entropy(logits, y).unwrap(),
                };
                let grad = leaf.grad(&loss.clone().backward()).unwrap();
                (loss.inner(), grad * 2.0)
            })
        });
        let [burns, others @ ..] = threads.map(|thread| thread.join().unwrap());
        for (loss, grad) in others {
            expect_close("loss", burns.0.clone(), loss, 1e-5);
            expect_close("gradient", burns.1.clone(), grad, 1e-6);
        }
    }
}

#[derive(Debug, Clone)]
struct Fourth;

impl Elementwise for Fourth {
    const NAME: &'static str = "fourth";
    const SHADER: Shader = Shader::new(
        "
        fn loss(e: Elements) -> vec4<f32> {
            let d = e.x - e.t;
            return d * d * d * d;
        }
        fn gradient(e: Elements) -> vec4<f32> {
            let d = e.x - e.t;
            return 4.0 * d * d * d;
        }",
    );
    const OF_DIFFERENCE: bool = true;

    fn reduction(&self) -> Reduction {
        Reduction::Sum
    }

    fn reference(&self, x: f64, t: f64, _pos_weight: f64) -> Point {
        let d = x - t;
        Point::new([d.powi(4)], [4.0 * d.powi(3)])
    }
}

/// A loss of the caller's own, in WGSL.
#[test]
fn losses_of_the_callers_own() {
    let x = Tensor::<1>::from_floats([1.0, 3.0, -1.0], &autodiff()).require_grad();
    let t = Tensor::<1>::from_floats([2.0, 1.0, -1.0], &device());
    let value: Tensor<1> = loss(&Fourth, Args::new(x.clone()).target(t)).unwrap();
    assert_eq!(values(x.grad(&value.backward()).unwrap()), [-4.0, 32.0, 0.0]);
    assert_eq!(values(value), [17.0]);
}

#[test]
fn what_is_refused_is_refused_at_the_call() {
    let (x, y) = (normal([3, 4], &device()), classes([3], 4, &device()));
    let refused = |op: &CrossEntropy, args: Args| loss::<1>(op, args).unwrap_err().to_string();
    let op = CrossEntropy::default();
    let args = || Args::new(x.clone()).classes(y.clone());
    assert_eq!(
        refused(&op, Args::new(x.clone()).classes(classes([4], 4, &device()))),
        "target: expected shape [3], got [4]"
    );
    assert!(refused(&op, args().weight(normal([3], &device()))).starts_with("weight: expected"));
    assert!(refused(&op, args().pos_weight(normal([4], &device()))).starts_with("pos_weight"));
    assert!(refused(&op.clone().label_smoothing(2.0), args()).starts_with("label_smoothing"));
    let far = op.clone().ignore_index(1 << 40);
    assert!(refused(&far, args()).starts_with("ignore_index: expected an integer that i32 holds"));
    let rank = loss::<2>(&op, args()).unwrap_err();
    assert_eq!(rank, Error::Rank { result: "loss", expected: 2, actual: vec![1] });
    check(&device()).unwrap();
}

/// Where burn would have to convert to a type that it does not have, on a thread where a panic would end
/// the device.
#[test]
fn what_burn_has_no_type_for_panics_at_the_call() {
    let device = device();
    if device.supports_dtype(DType::BF16) {
        return;
    }
    let data = TensorData::new(vec![half::bf16::ONE; 6], [3, 2]);
    let x = Tensor::<2>::from_data(data, (&device, DType::BF16));
    let y = classes([3, 2], 2, &device);
    let module = BinaryCrossEntropyLossConfig::new().with_logits(true).init(&device);
    let panics = std::panic::AssertUnwindSafe(|| module.forward(x.clone(), y));
    let panic = std::panic::catch_unwind(panics).unwrap_err();
    let told = panic.downcast_ref::<String>().unwrap();
    assert!(told.starts_with("input: expected f32 or f16"), "{told}");
    let mean = values(module.forward_probabilities(x.clone(), x, BurnReduction::Mean));
    assert!((mean[0] - 0.313_261_7).abs() < 1e-6, "{mean:?}");
    check(&device).unwrap();
}

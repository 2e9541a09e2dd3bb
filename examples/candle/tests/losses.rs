//! The same test for candle's losses and for wgloss's.

use candle_core::{DType, Device, Result, Tensor, Var};
use wgloss::{Args, Array, BceWithLogits, CrossEntropy, Op, Pass, reference};

type Loss = fn(&Tensor, &Tensor) -> Result<Tensor>;

/// Whether loss and gradient, times 3, are those of the float64 definition, to 1e-5 of the largest.
fn is_right(op: &dyn Op, loss: Loss, input: &Tensor, target: &Tensor) -> Result<bool> {
    let leaf = Var::from_tensor(input)?;
    let value = (loss(&leaf, target)? * 3.0)?;
    let grad = value.backward()?.remove(&leaf).expect("a gradient");
    let got = [numbers(&value)?, numbers(&grad)?];

    let classes = target.dims() != input.dims();
    let (x, t) = (numbers(input)?, numbers(target)?);
    let x: Vec<f32> = x.into_iter().map(|x| x as f32).collect();
    let target = match classes {
        true => Array::from_vec(t.iter().map(|&t| t as i32).collect(), target.dims()),
        false => Array::from_vec(t.iter().map(|&t| t as f32).collect(), target.dims()),
    };
    let args = Args::new(Array::new(&x, input.dims()).unwrap()).target(target.unwrap());
    let want = reference::run(op, Pass::ForwardBackward, &args).unwrap();
    let want = [want.loss().unwrap(), want.grad().unwrap()];
    Ok(got.iter().zip(want).all(|(got, want)| {
        let want: Vec<f64> = want.values.iter().map(|want| want * 3.0).collect();
        let largest = want.iter().fold(1e-3_f64, |largest, want| largest.max(want.abs()));
        got.len() == want.len()
            && got.iter().zip(&want).all(|(got, want)| (got - want).abs() <= 1e-5 * largest)
    }))
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1()
}

#[test]
fn cross_entropy() -> Result<()> {
    let op = CrossEntropy::default();
    let x = Tensor::randn(0.0_f32, 3.0, (37, 20), &Device::Cpu)?;
    let y: Vec<u32> = (0..37).map(|row| row * 7 % 20).collect();
    let y = Tensor::new(y, &Device::Cpu)?;
    for (x, y) in [
        (x.clone(), y.clone()),
        (x.narrow(1, 3, 17)?, y.clamp(0_u32, 16_u32)?),
        (Tensor::randn(0.0_f32, 3.0, (20, 37), &Device::Cpu)?.t()?, y.clone()),
        (x.narrow(0, 5, 30)?, y.narrow(0, 5, 30)?),
        (x, y.to_dtype(DType::I64)?),
    ] {
        assert!(is_right(&op, candle_nn::loss::cross_entropy, &x.contiguous()?, &y)?);
        assert!(is_right(&op, wgloss_candle::cross_entropy, &x, &y)?);
    }
    Ok(())
}

/// candle's is NaN from logits of 17 on, where its sigmoid is 1: 0 times the logarithm of 0.
#[test]
fn binary_cross_entropy() -> Result<()> {
    let op = BceWithLogits::default();
    let t = Tensor::new(&[[1.0_f32, 0.0, 1.0, 0.0]], &Device::Cpu)?;
    for (x, candles_is_right) in
        [([0.5_f32, -2.0, 3.0, 1.0], true), ([0.5, -2.0, 20.0, 1.0], false)]
    {
        let x = Tensor::new(&[x], &Device::Cpu)?;
        let candles = candle_nn::loss::binary_cross_entropy_with_logit;
        assert_eq!(is_right(&op, candles, &x, &t)?, candles_is_right);
        assert!(is_right(&op, wgloss_candle::binary_cross_entropy_with_logit, &x, &t)?);
        // and of targets that are classes to candle
        let t = t.to_dtype(DType::U8)?;
        assert!(is_right(&op, wgloss_candle::binary_cross_entropy_with_logit, &x, &t)?);
    }
    Ok(())
}

#[test]
fn sixteen_bits_and_refusals() -> Result<()> {
    let x = Tensor::randn(0.0_f32, 3.0, (6, 50), &Device::Cpu)?;
    let y = Tensor::new(&[0_u32, 3, 49, 7, 7, -100_i32 as u32], &Device::Cpu)?;
    for dtype in [DType::F16, DType::BF16] {
        let leaf = Var::from_tensor(&x.to_dtype(dtype)?)?;
        let loss = wgloss_candle::cross_entropy(&leaf, &y)?;
        let grad = loss.backward()?.remove(&leaf).expect("a gradient");
        assert_eq!((loss.dtype(), grad.dtype()), (DType::F32, dtype));
        assert!(numbers(&grad.narrow(0, 5, 1)?)?.iter().all(|&g| g == 0.0), "it is left out");
    }
    for class in [50_u32, 1 << 31, u32::MAX] {
        let y = Tensor::new(&[0, 0, 0, 0, 0, class], &Device::Cpu)?;
        let refused = wgloss_candle::cross_entropy(&x, &y).unwrap_err().to_string();
        assert!(refused.contains("class"), "{refused}");
    }
    let refused = wgloss_candle::cross_entropy(&x.to_dtype(DType::F64)?, &y).unwrap_err();
    assert!(refused.to_string().contains("F64"), "{refused}");
    Ok(())
}

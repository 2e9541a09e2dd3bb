//! What the tests share.

use std::sync::OnceLock;

use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use wgloss::Array;

/// The device of all tests but those that need one of their own, without autodiff.
pub fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| wgloss_burn::init().expect("a wgpu adapter")).clone()
}

/// The same with autodiff.
pub fn autodiff() -> Device {
    device().autodiff()
}

/// Another device on the same adapter, of the program's own: not shared yet.
pub fn another() -> (Device, burn::backend::wgpu::WgpuSetup) {
    use wgloss::wgpu;
    // with an instance of its own, so that what is created on it can be counted
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default());
    let adapter = pollster::block_on(adapter).expect("an adapter");
    let descriptor = wgpu::DeviceDescriptor {
        required_features: adapter.features()
            - wgpu::Features::all_experimental_mask()
            - wgpu::Features::MAPPABLE_PRIMARY_BUFFERS,
        required_limits: adapter.limits(),
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
    let backend = adapter.get_info().backend;
    let setup = burn::backend::wgpu::WgpuSetup { instance, adapter, device, queue, backend };
    (Device::wgpu_options().setup(setup.clone()).init().unwrap(), setup)
}

/// Numbers of deviation 3.
pub fn normal<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 3.0), device)
}

/// Numbers in [0, 1).
pub fn uniform<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(0.0, 1.0), device)
}

/// Class indices.
pub fn classes<const D: usize>(
    shape: [usize; D],
    classes: usize,
    device: &Device,
) -> Tensor<D, Int> {
    Tensor::random(shape, Distribution::Uniform(0.0, classes as f64), device)
}

/// An array in burn.
pub fn to_burn<const D: usize>(array: &Array<'_>, device: &Device) -> Tensor<D> {
    let (values, shape) = (array.to_f32(), array.shape().to_vec());
    match array.dtype() {
        wgloss::DType::F16 => {
            let values: Vec<_> = values.into_iter().map(half::f16::from_f32).collect();
            Tensor::from_data(TensorData::new(values, shape), (device, DType::F16))
        }
        wgloss::DType::Bf16 => {
            let values: Vec<_> = values.into_iter().map(half::bf16::from_f32).collect();
            Tensor::from_data(TensorData::new(values, shape), (device, DType::BF16))
        }
        _ => Tensor::from_data(TensorData::new(values, shape), (device, DType::F32)),
    }
}

/// Class indices in burn.
pub fn classes_to_burn(array: &Array<'_>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = array.to_f64().into_iter().map(|class| class as i32).collect();
    Tensor::from_data(TensorData::new(values, array.shape().to_vec()), (device, DType::I32))
}

/// The numbers of a tensor.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_to_vec().unwrap()
}

/// The integers of a tensor.
pub fn integers<const D: usize>(tensor: Tensor<D, Int>) -> Vec<i64> {
    tensor.into_data().convert::<i64>().try_to_vec().unwrap()
}

/// The largest difference of two tensors.
#[track_caller]
pub fn distance<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
    let (a, b) = (values(a.inner()), values(b.inner()));
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(&b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |max, d| if d > max || d.is_nan() { d } else { max })
}

/// Fails unless two tensors are equal but for rounding: `allowed` of the largest number, or of 1.
#[track_caller]
pub fn expect_close<const D: usize>(name: &str, a: Tensor<D>, b: Tensor<D>, allowed: f32) {
    assert_eq!(a.dims(), b.dims(), "{name}");
    let largest = values(a.clone().inner()).into_iter().fold(1.0, |max, v| v.abs().max(max));
    let off = distance(a, b) / largest;
    assert!(off <= allowed, "{name}: off by {off:e}, allowed {allowed:e}");
}

//! From the device back to the host: values, timestamps, errors.

use futures_intrusive::channel::shared::oneshot_channel;

use crate::program::check_status;
use crate::{Array, DType, Error, Gpu, Result, Tensor};

impl Gpu {
    /// The tensor's elements.
    ///
    /// # Errors
    /// [`Error::Validation`] when the tensor's buffer lacks `COPY_SRC`; [`Error::OutOfMemory`];
    /// [`Error::DeviceLost`].
    pub async fn read(&self, tensor: &Tensor) -> Result<Array<'static>> {
        let [array] = &mut self.read_all(&[tensor]).await?[..] else { unreachable!() };
        Ok(array.clone())
    }

    /// Several tensors' elements, through one staging buffer.
    pub(crate) async fn read_all(&self, tensors: &[&Tensor]) -> Result<Vec<Array<'static>>> {
        // copies are in units of four bytes
        let sizes: Vec<u64> =
            tensors.iter().map(|t| t.layout().bytes().next_multiple_of(4)).collect();
        let copy = |encoder: &mut wgpu::CommandEncoder, staging: &wgpu::Buffer| {
            let mut offset = 0;
            for (tensor, &size) in tensors.iter().zip(&sizes) {
                encoder.copy_buffer_to_buffer(tensor.buffer(), 0, staging, offset, size);
                offset += size;
            }
        };
        let bytes = self.read_bytes(sizes.iter().sum(), copy).await?;
        let mut rest = &bytes[..];
        let mut arrays = Vec::with_capacity(tensors.len());
        for (tensor, &size) in tensors.iter().zip(&sizes) {
            let (own, after) = rest.split_at(size as usize);
            rest = after;
            let own = &own[..tensor.layout().bytes() as usize];
            let shape = tensor.shape();
            arrays.push(match tensor.dtype() {
                DType::F32 => Array::from_vec::<f32>(bytemuck::pod_collect_to_vec(own), shape),
                DType::F16 => {
                    Array::from_vec::<half::f16>(bytemuck::pod_collect_to_vec(own), shape)
                }
                DType::Bf16 => {
                    Array::from_vec::<half::bf16>(bytemuck::pod_collect_to_vec(own), shape)
                }
                DType::I32 => Array::from_vec::<i32>(bytemuck::pod_collect_to_vec(own), shape),
                DType::I64 => Array::from_vec::<i64>(bytemuck::pod_collect_to_vec(own), shape),
            }?);
        }
        Ok(arrays)
    }

    /// What `copy` puts into a staging buffer of `size` bytes.
    pub(crate) async fn read_bytes(
        &self,
        size: u64,
        copy: impl FnOnce(&mut wgpu::CommandEncoder, &wgpu::Buffer),
    ) -> Result<Vec<u8>> {
        if size == 0 {
            return Ok(Vec::new());
        }
        let (sender, receiver) = oneshot_channel();
        let submit = || {
            let staging = self.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("wgloss.staging"),
                size,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            let mut encoder = self.device().create_command_encoder(&Default::default());
            copy(&mut encoder, &staging);
            self.queue().submit([encoder.finish()]);
            staging.map_async(wgpu::MapMode::Read, .., move |result| {
                let _ = sender.send(result);
            });
            staging
        };
        let staging = self.guarded(submit).await?;
        let failed = |message: String| self.lost().unwrap_or(Error::Internal(message));
        match receiver.receive().await {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(failed(error.to_string())),
            None => return Err(failed("the readback was dropped".into())),
        }
        let range = staging.get_mapped_range(..).map_err(|error| failed(error.to_string()))?;
        let bytes = range.to_vec();
        drop(range);
        staging.unmap();
        Ok(bytes)
    }

    /// Waits for the device to be done, and turns what it reports of its inputs into an error:
    /// `status` is that of the output of a call on device tensors.
    ///
    /// # Errors
    /// [`Error::Class`] for a class out of range; those of [`Gpu::read`].
    pub async fn check(&self, status: &Tensor) -> Result<()> {
        if status.dtype() != DType::I32 {
            return Err(Error::DType {
                argument: "status",
                expected: DType::I32.to_string(),
                actual: status.dtype(),
            });
        }
        let words = self.read(status).await?.to_classes()?;
        let words: Vec<u32> = words.iter().map(|&word| word as u32).collect();
        match <[u32; 8]>::try_from(words) {
            Ok(words) => check_status(words),
            Err(_) => Err(Error::Shape {
                argument: "status",
                expected: "[8]".into(),
                actual: status.shape().to_vec(),
            }),
        }
    }
}

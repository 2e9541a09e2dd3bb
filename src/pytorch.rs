//! What differs from PyTorch, and why.
//!
//! The semantics of every op are PyTorch 2.15's, edge cases included: names, defaults, reductions and
//! divisors, `ignore_index`, broadcast weights. What follows is all that is otherwise on purpose; each
//! op's own page has its formulas and edges.
//!
//! # The same line
//! | PyTorch | here |
//! | --- | --- |
//! | `loss = F.cross_entropy(x, y, label_smoothing=0.1)` | `let op = CrossEntropy::default().label_smoothing(0.1);` |
//! | `grad, = torch.autograd.grad(loss, x)` | `let out = gpu.forward_backward(&op, &args).await?;` |
//! | `loss = F.linear_cross_entropy(x, w, y, linear_bias=b)` | `LinearCrossEntropy`, with `args.projection(w).bias(b)` |
//! | `loss`, `grad` | `out.loss()?`, `out.grad()?` |
//! | `loss.backward(upstream)` | `gpu.backward(&op, &args.upstream(upstream)).await?` |
//! | `weight=w`, `pos_weight=p` | `args.weight(w)`, `args.pos_weight(p)`: they are arguments, not options |
//! | `reduction="none"` | `.reduction(Reduction::None)` |
//!
//! Gradients are with respect to the input: there are none for targets or weights.
//! [`LinearCrossEntropy`](crate::LinearCrossEntropy) has those of its projection and its bias too.
//!
//! # Arguments
//! - Target and input have one shape. PyTorch broadcasts, with a warning, in `MSELoss` and its kin,
//!   which is nearly always a mistake.
//! - Class targets are i32 on the device; i64 from the host is accepted where it fits.
//! - A class out of range, or a probability outside [0, 1], is an error from the host. From device
//!   tensors the row or element is NaN, it is left out of the mean's divisor, and the
//!   [`Status`](crate::Status) keeps the first such row or element until it is checked. PyTorch's CUDA
//!   kernels abort the process.
//! - [`SigmoidFocal`](crate::SigmoidFocal)'s default reduction is mean, like that of all losses;
//!   torchvision's is none.
//! - The gradient of a map asks for an upstream gradient, as PyTorch does of what is not one number; that of
//!   a loss which is not reduced takes ones without one, where PyTorch asks: each is its own row's or
//!   element's.
//! - [`LinearCrossEntropy`](crate::LinearCrossEntropy) takes class targets alone, and its bias is f32. The
//!   gradient of a 16-bit projection is f32 unless asked otherwise: sums in 16 bits lose what micro-batches add.
//! - [`SmoothL1`](crate::SmoothL1)'s `beta` is finite: with infinity PyTorch's loss is 0 everywhere.
//!
//! # Digits
//! - Confident rows and elements keep their digits. At logits (20.7, 0) the cross entropy is 1.02e-9,
//!   and so is what comes out here; PyTorch's f32 loss and its gradient at the target are 0. Its binary
//!   cross entropy with logits is 0, or less than 0, for confident elements.
//! - Losses and weights are f32 whatever the input's storage type; arithmetic is f32.
//!
//! # NaN, infinities and zeros
//! - An ignored row's gradient is 0 even where the row or its upstream gradient holds NaN, which PyTorch
//!   lets through.
//! - A factor of exactly 0 (a target probability, a class or element weight) annihilates an infinity,
//!   where PyTorch gives NaN. So a class that is masked with -inf costs nothing where its target
//!   probability is 0.
//! - BCE with logits at an infinite logit with the matching target is 0; PyTorch gives NaN.
//! - [`KlDiv`](crate::KlDiv)'s gradient does not depend on the input, as in PyTorch: a NaN there is in the
//!   loss alone.
//! - Kept rows whose class weights, of both signs, sum to 0: the mean is NaN; PyTorch divides by 0.
//! - Class probabilities and focal targets that are subnormal may count as 0, since GPUs may flush them.
//! - A mean is infinite where its sum is beyond f32, though the mean itself may not be: as in PyTorch.
//!
//! # Losses that are options of another
//! `MultiLabelSoftMarginLoss` of C labels is [`BceWithLogits`](crate::BceWithLogits): its `weight`, `[C]`,
//! is broadcast here, and its mean is the mean. Its sum is the sum with weights divided by C (there the
//! losses of labels are averaged first), and its none the mean of none's losses along the last dimension.
//!
//! # What PyTorch lacks
//! [`CrossEntropy`](crate::CrossEntropy) has a logit scale, a softcap, z-loss, the mean of an empty batch
//! by choice, and of each row its logsumexp, argmax, correctness and entropy; so has
//! [`LinearCrossEntropy`](crate::LinearCrossEntropy), whose gradients are added to what is given.

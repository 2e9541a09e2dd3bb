//! The names of arguments and results, and one container with a place for each.

/// What a tensor is to an op: one of its arguments or one of its results.
///
/// Errors, slots of programs, flags of the command line and tensors in folders of cases have these
/// names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// Logits, predictions, log-probabilities: what the gradient is with respect to.
    Input,
    /// Class indices, or values of the input's shape.
    Target,
    /// The weights: of classes (`[C]`) for cross entropy, of elements otherwise. Always f32.
    Weight,
    /// The weight of the positive term of BCE with logits. Always f32.
    PosWeight,
    /// The classifier of linear cross entropy: what hidden states are multiplied by, `[V, D]`.
    Projection,
    /// What is added to the logits of a class, `[V]`. Always f32.
    Bias,
    /// The gradient of whatever follows the op with respect to its result.
    Upstream,
    /// What forward keeps of each row for backward: a result of the one, an argument of the other.
    State,
    /// What shards of the classes tell of each row, an argument.
    Partials,
    /// What a mean is divided by: a result of a shard's, an argument where it is that of all.
    Divisor,
    /// What a shard of the classes tells of each row, a result.
    Partial,
    /// The loss.
    Loss,
    /// The output of a map, such as [`Softmax`](crate::Softmax).
    Output,
    /// The gradient with respect to the input.
    Grad,
    /// The gradient with respect to the projection; as an argument, what it is added to.
    GradProjection,
    /// The gradient with respect to the bias; as an argument, what it is added to.
    GradBias,
    /// Each row's logsumexp of its logits.
    LogSumExp,
    /// Each row's largest class.
    Argmax,
    /// Whether each row's largest class is its target.
    Correct,
    /// The entropy of each row's softmax, in nats.
    Entropy,
}

impl Role {
    /// Every role: arguments, then results.
    pub const ALL: [Role; 20] = [
        Role::Input,
        Role::Target,
        Role::Weight,
        Role::PosWeight,
        Role::Projection,
        Role::Bias,
        Role::Upstream,
        Role::State,
        Role::Partials,
        Role::Divisor,
        Role::Partial,
        Role::Loss,
        Role::Output,
        Role::Grad,
        Role::GradProjection,
        Role::GradBias,
        Role::LogSumExp,
        Role::Argmax,
        Role::Correct,
        Role::Entropy,
    ];

    /// `input`, `target`, `weight`, `pos_weight`, `projection`, `bias`, `upstream`, `state`,
    /// `partials`, `divisor`, `partial`, `loss`, `output`, `grad`, `grad_projection`, `grad_bias`, `logsumexp`, `argmax`, `correct`, `entropy`.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Input => "input",
            Role::Target => "target",
            Role::Weight => "weight",
            Role::PosWeight => "pos_weight",
            Role::Projection => "projection",
            Role::Bias => "bias",
            Role::Upstream => "upstream",
            Role::State => "state",
            Role::Partials => "partials",
            Role::Divisor => "divisor",
            Role::Partial => "partial",
            Role::Loss => "loss",
            Role::Output => "output",
            Role::Grad => "grad",
            Role::GradProjection => "grad_projection",
            Role::GradBias => "grad_bias",
            Role::LogSumExp => "logsumexp",
            Role::Argmax => "argmax",
            Role::Correct => "correct",
            Role::Entropy => "entropy",
        }
    }

    /// The role of this [name](Self::name).
    pub fn from_name(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name)
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// At most one T for each role.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Parts<T>([Option<T>; Role::ALL.len()]);

impl<T> Default for Parts<T> {
    fn default() -> Self {
        Parts([const { None }; Role::ALL.len()])
    }
}

impl<T> Parts<T> {
    pub fn get(&self, role: Role) -> Option<&T> {
        self.0[role as usize].as_ref()
    }

    pub fn get_mut(&mut self, role: Role) -> &mut Option<T> {
        &mut self.0[role as usize]
    }

    /// The places of several roles at once; `None` where one is named twice.
    #[cfg(feature = "cpu")]
    pub fn get_disjoint_mut<const N: usize>(
        &mut self,
        roles: [Role; N],
    ) -> Option<[&mut Option<T>; N]> {
        self.0.get_disjoint_mut(roles.map(|role| role as usize)).ok()
    }

    /// Every part that there is, in the order of [`Role::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Role, &T)> {
        Role::ALL.into_iter().filter_map(|role| Some((role, self.get(role)?)))
    }

    /// The same roles, each part turned into something else.
    pub fn try_map<'a, U, E>(
        &'a self,
        mut f: impl FnMut(Role, &'a T) -> Result<U, E>,
    ) -> Result<Parts<U>, E> {
        let mut parts = Parts::default();
        for (role, part) in self.iter() {
            *parts.get_mut(role) = Some(f(role, part)?);
        }
        Ok(parts)
    }

    /// Every part that there is, in the order of [`Role::ALL`].
    pub fn into_parts(self) -> impl Iterator<Item = (Role, T)> {
        Role::ALL.into_iter().zip(self.0).filter_map(|(role, part)| Some((role, part?)))
    }
}

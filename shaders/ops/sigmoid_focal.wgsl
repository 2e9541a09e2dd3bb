// Sigmoid focal loss: the hooks of family/elements.wgsl. settings[0].x is alpha, where below 0 there
// is none; settings[0].y is 1 - alpha from the host, because f32 would lose its digits here;
// settings[0].z is gamma.
//
// q = 1 - p_t is computed as p (1 - t) + (1 - p) t, because the subtraction would cancel. It is
// negative only for targets outside [0, 1].

struct Focal {
    // the loss without the factors alpha and q^gamma: BCE with logits
    bce: vec4<f32>,
    // its derivative
    bce_gradient: vec4<f32>,
    q: vec4<f32>,
    q_gradient: vec4<f32>,
    alpha: vec4<f32>,
    // The square root of |q|^gamma, because the power may underflow where the loss does not. It
    // is 0 only at q = 0.
    root: vec4<f32>,
    // the sign of q^gamma
    sign: vec4<f32>,
}

fn focal(e: Elements) -> Focal {
    let alpha = params.settings[0].x;
    let p = sigmoid4(e.x);
    let p_of_negative = sigmoid4(-e.x);
    let q = p * (1.0 - e.t) + p_of_negative * e.t;
    let root = max(power(abs(q), 0.5 * params.settings[0].z), vec4(SMALLEST));
    let log1p_exp = log1p_unit(exp_nonpositive(-abs(e.x)));
    return Focal(
        zero_wins(e.t, log1p_exp + max(-e.x, vec4(0.0)))
            + zero_wins(1.0 - e.t, log1p_exp + max(e.x, vec4(0.0))),
        (1.0 - e.t) * p - e.t * p_of_negative,
        q,
        p * p_of_negative * (1.0 - 2.0 * e.t),
        select(alpha * e.t + params.settings[0].y * (1.0 - e.t), vec4(1.0), vec4(alpha < 0.0)),
        select(root, vec4(0.0), (q == vec4(0.0)) & vec4(params.settings[0].z != 0.0)),
        select(vec4(1.0), vec4(-1.0), (q < vec4(0.0)) & vec4(!is_whole(0.5 * params.settings[0].z))),
    );
}

// q^gamma for q >= 0; q^0 is 1.
fn power(q: vec4<f32>, gamma: f32) -> vec4<f32> {
    if gamma == 0.0 {
        return vec4(1.0);
    }
    return power4(q, gamma);
}

fn is_whole(v: f32) -> bool {
    return v == floor(v);
}

// NaN for a q below 0 whose power is not defined: that of a gamma that is not whole.
fn defined(f: Focal, value: vec4<f32>) -> vec4<f32> {
    return select(value, vec4(nan()), (f.q < vec4(0.0)) & vec4(!is_whole(params.settings[0].z)));
}

fn loss(e: Elements) -> vec4<f32> {
    let f = focal(e);
    let value = zero_wins(f.root, f.sign * (f.root * f.bce));
    return defined(f, zero_wins(f.alpha, value));
}

fn gradient(e: Elements) -> vec4<f32> {
    let f = focal(e);
    let gamma = params.settings[0].z;
    var g = f.sign * (f.root * f.root * f.bce_gradient);
    if gamma != 0.0 {
        let slope = zero_wins(f.bce, power(abs(f.q), gamma - 1.0));
        // where q is negative, q^(gamma - 1) has the other sign
        let sign = select(vec4(1.0), -f.sign, f.q < vec4(0.0));
        g += gamma * sign * zero_wins(f.q_gradient, slope);
    }
    return defined(f, zero_wins(f.alpha, g));
}

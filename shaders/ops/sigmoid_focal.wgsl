// Sigmoid focal loss: the hooks of family/elements.wgsl. settings[0].x is alpha (below 0: none),
// y 1 - alpha, whose digits f32 may lose, z gamma.
//
// q = 1 - p_t = p (1 - t) + (1 - p) t, without the subtraction that would cancel. It is negative only
// for targets outside [0, 1].

struct Focal {
    // the loss without its focus: BCE with logits
    bce: vec4<f32>,
    // its derivative
    bce_gradient: vec4<f32>,
    q: vec4<f32>,
    q_gradient: vec4<f32>,
    alpha: vec4<f32>,
    // the square root of |q|^gamma, which may underflow where the loss does not; 0 at q = 0 alone
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
        annihilating_product(e.t, log1p_exp + max(-e.x, vec4(0.0)))
            + annihilating_product(1.0 - e.t, log1p_exp + max(e.x, vec4(0.0))),
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

// Of a negative number, powers that are not whole are NaN.
fn defined(f: Focal, value: vec4<f32>) -> vec4<f32> {
    return select(value, vec4(nan()), (f.q < vec4(0.0)) & vec4(!is_whole(params.settings[0].z)));
}

fn loss(e: Elements) -> vec4<f32> {
    let f = focal(e);
    let value = annihilating_product(f.root, f.sign * (f.root * f.bce));
    return defined(f, annihilating_product(f.alpha, value));
}

fn gradient(e: Elements) -> vec4<f32> {
    let f = focal(e);
    let gamma = params.settings[0].z;
    var g = f.sign * (f.root * f.root * f.bce_gradient);
    if gamma != 0.0 {
        let slope = annihilating_product(f.bce, power(abs(f.q), gamma - 1.0));
        // q^(gamma - 1) has the other sign, where q is negative
        let sign = select(vec4(1.0), -f.sign, f.q < vec4(0.0));
        g += gamma * sign * annihilating_product(f.q_gradient, slope);
    }
    return defined(f, annihilating_product(f.alpha, g));
}

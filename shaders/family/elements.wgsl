// Element-wise losses and maps. Each team takes a chunk of the elements, vec4 by vec4. Of a map,
// what is called a loss here is its output.
//
// Reads `input` [elements] and, where given, `targets`, `upstream` [elements] or [1], `weight`
// and `pos_weight`, which broadcast. Writes `grad` [elements] and, through a file of results/,
// each element's loss or output, or one sum a team. Each element is written by one member of one
// team, and a team's sum by its member 0. No barriers but those of team/.
//
// Hooks, from the op's file, for four elements at once:
//     fn loss(e: Elements) -> vec4<f32>
//     fn gradient(e: Elements) -> vec4<f32>      its derivative with respect to the input
// They need not care for NaN in e.x and e.t, because it is put into the result afterwards.
// From a file of checks/:
//     fn unacceptable(at: Vec4Index, x: vec4<f32>, t: vec4<f32>) -> vec4<bool>
//                                                which of four elements the op does not take
//
// Overrides: those below. Of the host's constants TILE_VEC4S and CONTIGUOUS_VEC4S are used, as in
// shared/row_tiles.wgsl; nothing stays in registers.

struct Params {
    offsets: array<vec4<u32>, 9>,
    // how many vec4s there are
    vec4s: u32,
    // how many of them a team takes
    per_team: u32,
    teams: u32,
    // the elements of an outer row
    row_elements: u32,
    // how many dimensions weights are broadcast over
    dims: u32,
    // what gradients are multiplied by: 1 / elements for the mean
    scale: f32,
    // 1 where each element has a weight of its own, and a pos_weight; else 0
    own: vec2<u32>,
    // the op's options, as its settings() has them
    settings: array<vec4<f32>, 2>,
    // the first element of this dispatch, among all
    first: u32,
    // the dimensions, innermost first: size, stride of weight, stride of pos_weight, and the
    // index in it of the dispatch's first element
    dim: array<vec4<u32>, 8>,
}

struct Elements {
    x: vec4<f32>,
    t: vec4<f32>,
    pos_weight: vec4<f32>,
}

@group(0) @binding(0) var<uniform> params: Params;
// broadcast by params.dim, or [elements]
@group(0) @binding(3) var<storage, read> weight: array<f32>;
// broadcast by params.dim, or [elements]
@group(0) @binding(8) var<storage, read> pos_weight: array<f32>;

// Whether there are targets. Maps have none.
override HAS_TARGET: bool = true;
// Whether it is a loss of x - t, which is NaN where both are the same infinity.
override OF_DIFFERENCE: bool = false;
// Whether the gradient depends on the input. Where it does not, NaN in the input leaves it alone.
override GRAD_READS_INPUT: bool = true;
// Whether a gradient beyond f32 is proportional to input and target.
override PROPORTIONAL: bool = false;
// Whether the gradient at NaN is 0.
override ZERO_GRADIENT_AT_NAN: bool = false;
override WEIGHTED: bool = false;
override POS_WEIGHTED: bool = false;
// Whether elements lie in several outer rows.
override OUTER_ROWS: bool = false;
// Whether losses are summed, to one number a team.
override REDUCED: bool = false;

// The i-th vec4 of this dispatch. None reaches from one outer row into the next.
fn vec4_at(i: u32) -> Vec4Index {
    var outer_row = 0u;
    var column = 4u * i;
    if OUTER_ROWS {
        let per_row = (params.row_elements + 3u) / 4u;
        outer_row = i / per_row;
        column = 4u * (i - outer_row * per_row);
    }
    let last = select(min(params.row_elements - 1u - column, 3u), 3u, WHOLE_VEC4S);
    return Vec4Index(outer_row, column, last, outer_row * params.row_elements + column);
}

// The indices of an element's weight and pos_weight in their bindings, for the i-th element of this
// dispatch. Its index in each dimension is that of the dispatch's first element plus what i is
// there, and carries into the next dimension.
fn weight_indices(i: u32) -> vec2<u32> {
    var remainder = i;
    var indices = vec2(element_index(WEIGHT, 0u, 0u), element_index(POS_WEIGHT, 0u, 0u))
        + i * params.own;
    for (var d = 0u; d < params.dims; d += 1u) {
        let dim = params.dim[d];
        let index = remainder % dim.x + dim.w;
        let carry = select(0u, 1u, index >= dim.x);
        indices += (index - carry * dim.x) * dim.yz;
        remainder = remainder / dim.x + carry;
    }
    return indices;
}

struct Weights {
    weight: vec4<f32>,
    pos_weight: vec4<f32>,
}

fn load_weights(at: Vec4Index) -> Weights {
    var weights = Weights(vec4(1.0), vec4(1.0));
    if WEIGHTED || POS_WEIGHTED {
        for (var i = 0u; i <= at.last; i += 1u) {
            let indices = weight_indices(at.index + i);
            if WEIGHTED {
                weights.weight[i] = weight[indices.x];
            }
            if POS_WEIGHTED {
                weights.pos_weight[i] = pos_weight[indices.y];
            }
        }
    }
    return weights;
}

struct Loaded {
    elements: Elements,
    weight: vec4<f32>,
    // whether an operand is NaN, or the difference that the loss is of
    is_nan: vec4<bool>,
    // the same for the gradient
    is_nan_gradient: vec4<bool>,
    // whether the op does not take these numbers
    is_bad: vec4<bool>,
}

fn load_elements(at: Vec4Index) -> Loaded {
    let x = load_input(element_index(INPUT, at.outer_row, at.column), 1u, at.last);
    var t = vec4(0.0);
    if HAS_TARGET {
        t = load_targets(element_index(TARGETS, at.outer_row, at.column), 1u, at.last);
    }
    let weights = load_weights(at);
    let is_nan_target = is_nan4(t);
    var is_nan = is_nan4(x) | is_nan_target;
    if OF_DIFFERENCE {
        is_nan |= is_same_infinity4(x, t);
    }
    return Loaded(
        Elements(x, t, weights.pos_weight),
        weights.weight,
        is_nan,
        select(is_nan_target, is_nan, GRAD_READS_INPUT),
        unacceptable(at, x, t),
    );
}

fn weighted_loss(loaded: Loaded) -> vec4<f32> {
    let value = zero_wins(loaded.weight, loss(loaded.elements));
    return select(value, vec4(nan()), loaded.is_nan | loaded.is_bad);
}

// The gradient times its scale. What is beyond f32 before that may be within it after: there the scale
// is multiplied in first, and a gradient that is itself beyond f32 is that of quarters, where the op
// allows it.
fn scaled_gradient(loaded: Loaded, scale: vec4<f32>) -> vec4<f32> {
    var g = gradient(loaded.elements);
    let value = zero_wins(loaded.weight, g);
    let scaled = zero_wins(value, scale);
    var whole = vec4(1.0);
    if PROPORTIONAL {
        let e = loaded.elements;
        let is_beyond = is_infinity4(g);
        g = select(g, gradient(Elements(quarter4(e.x), quarter4(e.t), e.pos_weight)), is_beyond);
        // not a constant, because a compiler may join constants
        whole = select(whole, vec4(4.0), is_beyond);
    }
    if WEIGHTED || PROPORTIONAL {
        let scaled_first = zero_wins(loaded.weight, zero_wins(g, scale)) * whole;
        return select(scaled, scaled_first, is_infinity4(value));
    }
    return scaled;
}

// Stores the gradient, whose factor for the reduction is `divided`.
fn store_weighted_gradient(at: Vec4Index, loaded: Loaded, divided: f32) {
    let scale = upstream_of_elements(at) * divided;
    var scaled = scaled_gradient(loaded, scale);
    if ZERO_GRADIENT_AT_NAN {
        scaled = select(scaled, vec4(0.0), loaded.is_nan_gradient);
    } else {
        scaled = select(scaled, vec4(nan()), loaded.is_nan_gradient);
    }
    let stored = select(scaled, vec4(nan()), loaded.is_bad | is_nan4(scale));
    store_grad(element_index(GRAD, at.outer_row, at.column), 1u, at.last, stored);
}

// A team's vec4s, as first..end, and how many of them its tile has.
struct Chunk {
    first: u32,
    end: u32,
    tile_size: u32,
}

fn chunk_of(team: Team) -> Chunk {
    let first = team.index * params.per_team;
    return Chunk(first, min(first + params.per_team, params.vec4s), TILE_VEC4S * team.size);
}

// A member's k-th vec4 of the tile that begins with the vec4 `start`.
fn tile_vec4(team: Team, start: u32, k: u32) -> u32 {
    return start + (k / CONTIGUOUS_VEC4S * team.size + member) * CONTIGUOUS_VEC4S
        + k % CONTIGUOUS_VEC4S;
}

// Stores losses, or returns them to be summed.
fn take_loss(at: Vec4Index, value: vec4<f32>) -> vec4<f32> {
    if REDUCED {
        return select(vec4(0.0), value, vec4(0u, 1u, 2u, 3u) <= vec4(at.last));
    }
    store_results(element_index(RESULTS, at.outer_row, at.column), at.last, value);
    return vec4(0.0);
}

fn store_team_sum(team: Team, total: vec4<f32>) {
    let sum = team_sum(team, vec4(add_up(total))).x;
    if member == 0u {
        store_sum(element_index(RESULTS, 0u, team.index), sum);
    }
}

// Each pass has a loop of its own, because every pass would have to bind whatever a shared loop
// uses.
@compute @workgroup_size(WORKGROUP_SIZE)
fn forward(workgroup: Workgroup, invocation: Invocation) {
    read_offsets();
    let team = team_of(workgroup, invocation);
    if team.index >= params.teams {
        return;
    }
    let chunk = chunk_of(team);
    // a tile's losses are added up before they are added to the total, so that no sum takes many
    // additions
    var total = vec4(0.0);
    for (var start = chunk.first; start < chunk.end; start += chunk.tile_size) {
        var partial = vec4(0.0);
        for (var k = 0u; k < TILE_VEC4S; k += 1u) {
            let i = tile_vec4(team, start, k);
            if i < chunk.end {
                let at = vec4_at(i);
                partial += take_loss(at, weighted_loss(load_elements(at)));
            }
        }
        total += partial;
    }
    if REDUCED {
        store_team_sum(team, total);
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn backward(workgroup: Workgroup, invocation: Invocation) {
    read_offsets();
    let team = team_of(workgroup, invocation);
    if team.index >= params.teams {
        return;
    }
    let chunk = chunk_of(team);
    let scale = params.scale;
    for (var start = chunk.first; start < chunk.end; start += chunk.tile_size) {
        for (var k = 0u; k < TILE_VEC4S; k += 1u) {
            let i = tile_vec4(team, start, k);
            if i < chunk.end {
                let at = vec4_at(i);
                store_weighted_gradient(at, load_elements(at), scale);
            }
        }
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward_backward(workgroup: Workgroup, invocation: Invocation) {
    read_offsets();
    let team = team_of(workgroup, invocation);
    if team.index >= params.teams {
        return;
    }
    let chunk = chunk_of(team);
    let scale = params.scale;
    // as in forward
    var total = vec4(0.0);
    for (var start = chunk.first; start < chunk.end; start += chunk.tile_size) {
        var partial = vec4(0.0);
        for (var k = 0u; k < TILE_VEC4S; k += 1u) {
            let i = tile_vec4(team, start, k);
            if i < chunk.end {
                let at = vec4_at(i);
                let loaded = load_elements(at);
                partial += take_loss(at, weighted_loss(loaded));
                store_weighted_gradient(at, loaded, scale);
            }
        }
        total += partial;
    }
    if REDUCED {
        store_team_sum(team, total);
    }
}

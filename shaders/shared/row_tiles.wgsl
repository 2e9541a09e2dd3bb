// Rows of logits in memory: where a team's rows lie, how its members load them tile by tile into
// registers, and the walk over a row that finds its partial (shared/row_state.wgsl).
//
// A tile is the part of a row that a team holds at once: TILE_VEC4S vec4s in the registers of each
// member, CONTIGUOUS_VEC4S of them side by side in memory. With ROW_IN_REGISTERS one tile is all of
// the row, or of a team's split of it, and stays in registers until the gradient asks for it. The
// host puts these three constants in front of the text (src/kernel.rs), since no override sizes a
// private array.
//
// Reads `input` [rows, classes] by load_input (storage/, access/). Writes nothing.
//
// Hook, from the op's file:
//     fn target_weights(row: Row, c: u32, valid: vec4<bool>) -> vec4<f32>
//                                    a[c], ..., a[c + 3]; 0 where not valid
// and from the op's file or the family's:
//     fn tile_holds_exponentials() -> bool
//                                    whether a tile that stays in registers does so as e^(x[c] - m)
//
// Overrides: STRIDED, and those of shared/row_state.wgsl.

struct Params {
    offsets: array<vec4<u32>, 9>,
    // of this dispatch
    rows: u32,
    classes: u32,
    // The distance between classes of a row. Rows are [batch, positions]: those of neighbouring
    // positions begin 1 apart.
    positions: u32,
    ignore_index: i32,
    // 1 - label smoothing
    confidence: f32,
    // label smoothing / classes
    smoothing: f32,
    // the divisor of the mean, where the host knows it
    divisor: f32,
    // logit scale, softcap and z-loss of cross entropy
    scale: f32,
    softcap: f32,
    z_loss: f32,
    // the first row of this dispatch, among all
    first: u32,
    // how many rows a team takes, one after the other
    rows_per_team: u32,
    // or into how many splits a row is divided, a team each, and how many classes a split has:
    // whole tiles, but for the last one's
    splits: u32,
    classes_per_split: u32,
    // how many partials of each row there are in memory
    shares: u32,
    // the first of these classes among all of a vocabulary, and how many those are
    first_class: u32,
    total_classes: u32,
    unused_0: u32,
    unused_1: u32,
    unused_2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

// Whether the classes of a row lie params.positions apart, of which there is more than one.
override STRIDED: bool = false;

struct Row {
    // among the rows of this dispatch
    index: u32,
    // the index of the batch, and the position within it
    outer_row: u32,
    position: u32,
    // the classes that the team takes: begin..end
    begin: u32,
    end: u32,
    // ROW_KEPT, ROW_IGNORED or ROW_BAD (shared/classes.wgsl)
    kind: u32,
    // the target class, where there is one
    label: u32,
    // the target weight of that class, beyond what all classes get by label smoothing
    target_weight: f32,
    // where its logits lie, and where its row of the aligned tensor does: the tensor that has a
    // number for each of the input's, such as probabilities or an upstream gradient
    input: Span,
    aligned: Span,
}

// Where the classes of a row lie in a binding: the index of class 0, and the distance to the next.
struct Span {
    first: u32,
    step: u32,
}

// What a row's gradient is multiplied by.
struct RowScale {
    value: f32,
    // whether it is that of a mean over rows whose weights sum to 0
    undefined: bool,
}

// The rows of a team, as first..end. Where rows are split, their splits are counted instead.
fn rows_of(team: Team) -> vec2<u32> {
    let first = team.index * params.rows_per_team;
    return vec2(first, min(first + params.rows_per_team, params.rows * params.splits));
}

// A row of which no target is known. `aligned` is the binding of the aligned tensor.
fn row_at(index: u32, aligned: u32) -> Row {
    var outer_row = index;
    var position = 0u;
    if STRIDED {
        outer_row = index / params.positions;
        position = index - outer_row * params.positions;
    }
    return Row(
        index, outer_row, position, 0u, params.classes, 0u, 0u, 0.0,
        span_of(outer_row, position, INPUT), span_of(outer_row, position, aligned));
}

fn span_of(outer_row: u32, position: u32, binding: u32) -> Span {
    return Span(
        uniform_index(binding, outer_row, position), select(1u, params.positions, STRIDED));
}

fn class_index(span: Span, c: u32) -> u32 {
    return span.first + c * span.step;
}

// Which of the four classes from c on, in 0..=3, is the row's last.
fn last_of_vec4(c: u32) -> u32 {
    return min(params.classes - 1u - c, 3u);
}

fn valid_classes(c: u32) -> vec4<bool> {
    return vec4(c, c + 1u, c + 2u, c + 3u) < vec4(params.classes);
}

// The numbers of four classes from c on; -inf past the row's end.
fn load_row(row: Row, c: u32, valid: vec4<bool>) -> vec4<f32> {
    if c >= params.classes {
        return vec4(-positive_infinity());
    }
    let x = load_input(class_index(row.input, c), row.input.step, last_of_vec4(c));
    if WHOLE_VEC4S {
        return x;
    }
    return select(vec4(-positive_infinity()), x, valid);
}

// The tile in this member's registers.
var<private> tile: array<vec4<f32>, TILE_VEC4S>;

// How many classes a team's tile has.
fn tile_size(team: Team) -> u32 {
    return 4u * TILE_VEC4S * team.size;
}

// The first class of a member's k-th vec4, of the tile that begins at class `start`.
fn tile_class(team: Team, start: u32, k: u32) -> u32 {
    return start + 4u * ((k / CONTIGUOUS_VEC4S * team.size + member) * CONTIGUOUS_VEC4S
        + k % CONTIGUOUS_VEC4S);
}

fn load_tile(team: Team, row: Row, start: u32) {
    for (var k = 0u; k < TILE_VEC4S; k += 1u) {
        let c = tile_class(team, start, k);
        tile[k] = load_row(row, c, valid_classes(c));
    }
}

// e^(x - m) of the k-th vec4 of the tile.
fn exponentials(k: u32, m: f32) -> vec4<f32> {
    if tile_holds_exponentials() {
        return tile[k];
    }
    return exp_nonpositive(relative4(logits_of(tile[k]), m));
}

// Whether the tile that begins at class `start` lies past the team's classes, on either side:
// before the first class the unsigned difference wraps around.
fn is_past_row(row: Row, start: u32) -> bool {
    return (ROW_IN_REGISTERS && start != row.begin) || start - row.begin >= row.end - row.begin;
}

// Whether row_partial walks from the last tile to the first. The gradient walks the other way, so
// it begins with the tile that is still in registers, and goes on with what was read last, while
// caches may have it. Not where CONTIGUOUS_VEC4S is above 1: on software devices, whose
// processors prefetch upwards.
const REVERSE: bool = !ROW_IN_REGISTERS && CONTIGUOUS_VEC4S == 1u;

// Whether row_partial leaves the tile that begins at class `start` in registers.
fn is_left_in_registers(row: Row, start: u32) -> bool {
    return ROW_IN_REGISTERS || (REVERSE && start == row.begin);
}

// How many additions a lane's sums take before they are merged into the total. Longer sums drift.
const ADDITIONS: u32 = 64u;

// What the team finds of its classes of a row, the same for every member. The flag HAS_NAN_LOGIT is
// for logits that there are: a row of nothing but -inf has a max_count of 0.
fn row_partial(team: Team, row: Row) -> RowPartial {
    var total = empty_partial();
    var extremes = no_extremes();
    var start = row.begin;
    var step = tile_size(team);
    if REVERSE {
        start += (row.end - row.begin - 1u) / step * step;
        step = 0u - step;
    }
    loop {
        var partial = empty_partial();
        for (var i = 0u; i < max(ADDITIONS / TILE_VEC4S, 1u) && !is_past_row(row, start); i += 1u) {
            load_tile(team, row, start);
            var most = vec4(LOWEST);
            for (var k = 0u; k < TILE_VEC4S; k += 1u) {
                extremes = with_extremes(extremes, tile[k]);
                most = max(most, logits_of(tile[k]));
            }
            var m = max(max(most.x, most.y), max(most.z, most.w));
            if ROW_IN_REGISTERS {
                // the row's maximum at once, so that nothing has to be rescaled
                partial.m = team_max(team, m);
            } else {
                rescale(&partial, m);
            }
            for (var k = 0u; k < TILE_VEC4S; k += 1u) {
                let x = logits_of(tile[k]);
                let e = exp_nonpositive(relative4(x, partial.m));
                var a = vec4(0.0);
                if DENSE_TARGET {
                    let c = tile_class(team, start, k);
                    a = target_weights(row, c, valid_classes(c));
                }
                add_vec4(&partial, x, e, a);
                if tile_holds_exponentials() {
                    tile[k] = e;
                }
            }
            start += step;
        }
        if ROW_IN_REGISTERS {
            total = partial;
            break;
        }
        merge(&total, &partial);
        if is_past_row(row, start) {
            break;
        }
    }

    var m = total.m;
    if !ROW_IN_REGISTERS {
        m = team_max(team, m);
        rescale(&total, m);
    }
    return partial_of_members(
        team, partial_of_lanes(total), has_nan_or_positive_infinity(extremes));
}

// The statistics of a row that one team takes.
fn row_stats(team: Team, row: Row) -> RowStats {
    return stats_of_partial(row_partial(team, row));
}

// The first class at the maximum m of a team's classes, found by another reading; the number of
// classes where there is none.
fn first_at_max(team: Team, row: Row, largest: f32) -> u32 {
    var m = largest;
    if SOFTCAP {
        // a cap makes ties of large logits, so the numbers before it are compared
        m = LOWEST;
        for (var c = row.begin + 4u * member; c < row.end; c += 4u * team.size) {
            let x = load_row(row, c, valid_classes(c));
            m = max(m, max(max(x.x, x.y), max(x.z, x.w)));
        }
        m = team_max(team, m);
    }
    var first = params.classes;
    for (var c = row.begin + 4u * member; c < row.end; c += 4u * team.size) {
        let at_max = load_row(row, c, valid_classes(c)) == vec4(m);
        let found = select(vec4(first), vec4(c, c + 1u, c + 2u, c + 3u), at_max);
        first = min(first, min(min(found.x, found.y), min(found.z, found.w)));
    }
    return team_min(team, first);
}

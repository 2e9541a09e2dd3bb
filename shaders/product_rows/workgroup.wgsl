// Rows of a tile whose columns are divided among TILE_SIDE members (product/workgroup.wgsl), which exchange partials
// through the memory of the tile's operands: 8 TILE_SIDE^2 numbers, of the 128 TILE_SIDE that there are.
//
// Barriers: one before partials are written, because members may still read the tile or what was written for the last
// row, and two for each of the merges. Ownership: a member writes its own partial.

fn is_first_of_row() -> bool {
    return member % TILE_SIDE == 0u;
}

fn write_partial(partial: RowPartial) {
    let packed = pack_partial(partial);
    let i = 4u * member;
    left_tile[i] = packed.a.x;
    left_tile[i + 1u] = packed.a.y;
    left_tile[i + 2u] = packed.a.z;
    left_tile[i + 3u] = packed.a.w;
    right_tile[i] = packed.b.x;
    right_tile[i + 1u] = packed.b.y;
    right_tile[i + 2u] = packed.b.z;
    right_tile[i + 3u] = packed.b.w;
}

fn read_partial(from_member: u32) -> PartialLanes {
    let i = 4u * from_member;
    return lanes_of_partial(unpack_partial(PackedPartial(
        vec4(left_tile[i], left_tile[i + 1u], left_tile[i + 2u], left_tile[i + 3u]),
        vec4(right_tile[i], right_tile[i + 1u], right_tile[i + 2u], right_tile[i + 3u]))));
}

fn partial_of_row(team: Team, columns: Columns) -> RowPartial {
    let m = largest_of(columns);
    var own = partial_of_columns(columns, m);
    own.flags |= select(0u, HAS_NAN_LOGIT, columns.has_nan);
    if ROW_OUTPUTS {
        own.first_at_max = first_of_columns(columns, m);
    }
    workgroupBarrier();
    write_partial(own);
    for (var step = 1u; step < TILE_SIDE; step *= 2u) {
        workgroupBarrier();
        let merges = member % (2u * step) == 0u;
        if merges {
            var total = lanes_of_partial(own);
            var other = read_partial(member + step);
            merge(&total, &other);
            own = partial_of_lanes(total);
        }
        workgroupBarrier();
        if merges {
            write_partial(own);
        }
    }
    return own;
}

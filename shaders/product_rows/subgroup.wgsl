// Rows of a tile whose columns are divided among all members of a cluster (product/subgroup.wgsl). Each file of this
// folder defines is_first_of_row and partial_of_row.

fn is_first_of_row() -> bool {
    return member == 0u;
}

fn partial_of_row(team: Team, columns: Columns) -> RowPartial {
    let m = team_max(team, largest_of(columns));
    var partial = partial_of_members(team, partial_of_columns(columns, m), columns.has_nan);
    if ROW_OUTPUTS {
        partial.first_at_max = team_min(team, first_of_columns(columns, m));
    }
    return partial;
}

// For gradients that are written over the input, whose binding then serves both. Ownership:
// before any member of a team writes, all reads of the team that another member's write could
// disturb are done; from then on a member reads only what it will overwrite itself.

fn input_word(i: u32) -> Word {
    return grad_word(i);
}

// What a row's target says, where it is read from memory that the dispatch only reads. What is read
// there at one place is the same for all members of a team, and compilers know that.

fn uniform_target(target_bits: vec3<u32>) -> vec3<u32> {
    return target_bits;
}

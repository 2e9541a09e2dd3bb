//! README's table of ops has all that there are, with every option.

#[test]
fn every_op_and_option_is_in_the_table() {
    let readme = include_str!("../README.md");
    let (_, rest) = readme.split_once("## Ops and options\n").expect("a table of ops");
    let rows: Vec<_> = rest.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
    for op in wgloss::ops() {
        // the type's name
        let debug = format!("{op:?}");
        let name = format!("`{}`", debug.split(' ').next().unwrap());
        let has_name = |row: &&&str| row.split('|').nth(1).unwrap().contains(&name);
        // options of an op that it is made of
        let of_another = |row: &str, option: &str| {
            wgloss::ops().iter().any(|other| {
                let debug = format!("{other:?}");
                let other_name = debug.split(' ').next().unwrap();
                row.contains(&format!("those of `{other_name}`"))
                    && other.options().iter().any(|info| info.name == option)
            })
        };
        let row = rows.iter().find(has_name).unwrap_or_else(|| panic!("README: no {name}"));
        for info in op.options().iter().filter(|info| info.name != "reduction") {
            assert!(
                row.contains(&format!("`{}`", info.name)) || of_another(row, info.name),
                "README: no {} of {name}",
                info.name
            );
        }
    }
}

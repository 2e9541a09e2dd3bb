//! Progress bars.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

use crate::report::is_quiet;

/// A bar over so many steps that goes away when it is done with. It is drawn on stderr where that is a
/// terminal, and nowhere else, since its control characters would fill a log.
pub fn bar(length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    // hidden where stderr is no terminal, or one that cannot move its cursor
    let target = match is_quiet() {
        true => ProgressDrawTarget::hidden(),
        false => ProgressDrawTarget::stderr(),
    };
    let bar = ProgressBar::with_draw_target(Some(length), target)
        .with_style(style)
        .with_finish(ProgressFinish::AndClear);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// A bar over so many cases, each with a message.
pub fn cases(count: usize) -> ProgressBar {
    bar(count as u64, "{spinner} {bar:40} {pos}/{len} {msg}")
}

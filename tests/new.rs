mod composition;
mod pieces;
mod calls;

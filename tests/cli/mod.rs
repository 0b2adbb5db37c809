pub mod bootstrap;
pub mod help;
pub mod operator;

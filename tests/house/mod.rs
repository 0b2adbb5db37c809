//! Rules of the house: read from the sources, from the OpenAPI document, and over every operation.

mod access;
mod canary;
mod conformance;
mod every_change;
mod floors;
mod language;
mod openapi;
mod sources;
mod supply_chain;
mod tidy;

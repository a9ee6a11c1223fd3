//! The setters of option structs. These are `#[non_exhaustive]`, so that users cannot write them as literals.

/// Adds setters to a struct, each with the name of its field: `const` ones for types without a destructor, `plain` ones,
/// and ones that convert their argument `into` the type.
macro_rules! setters {
    (const $($field:ident: $type:ty),+ $(,)?) => { $(setters!(@ [const] $field, $type, $field);)+ };
    (plain $($field:ident: $type:ty),+ $(,)?) => { $(setters!(@ [] $field, $type, $field);)+ };
    (into $($field:ident: $type:ty),+ $(,)?) => { $(setters!(@ [] $field, impl Into<$type>, $field.into());)+ };
    (@ [$($const:tt)?] $field:ident, $argument:ty, $value:expr) => {
        #[doc = concat!("Sets [`", stringify!($field), "`](field@Self::", stringify!($field), ").")]
        #[must_use]
        pub $($const)? fn $field(mut self, $field: $argument) -> Self {
            self.$field = $value;
            self
        }
    };
}

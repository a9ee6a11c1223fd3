//! The mix of calls: which ones are made, and how often.

use std::str::FromStr;

use fastrand::Rng;

/// The largest weight. The sum of three fits into a `u32`.
const MAX_WEIGHT: u32 = 1_000_000;

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Has,
    Create,
    Destroy,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Has, Self::Create, Self::Destroy];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Has => "has",
            Self::Create => "create",
            Self::Destroy => "destroy",
        }
    }

    pub(super) fn unary_method(self) -> &'static str {
        match self {
            Self::Has => "HasSession",
            Self::Create => "CreateSession",
            Self::Destroy => "DestroySession",
        }
    }

    pub(super) fn batch_method(self) -> &'static str {
        match self {
            Self::Has => "BatchHasSessions",
            Self::Create => "BatchCreateSessions",
            Self::Destroy => "BatchDestroySessions",
        }
    }
}

/// The weight of each kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mix([u32; Kind::ALL.len()]);

impl Mix {
    pub(super) fn weight(&self, kind: Kind) -> u32 {
        self.0[kind as usize]
    }

    /// Picks the kind of the next call at random.
    pub(super) fn pick(&self, rng: &mut Rng) -> Kind {
        let [has, create, destroy] = self.0;
        let at = rng.u32(..has + create + destroy);
        if at < has {
            Kind::Has
        } else if at < has + create {
            Kind::Create
        } else {
            Kind::Destroy
        }
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help = "write weights, such as has=80,create=10,destroy=10";
        let mut weights = [None; Kind::ALL.len()];
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').ok_or_else(|| format!("{part:?} is not a weight: {help}"))?;
            let kind = Kind::ALL
                .into_iter()
                .find(|kind| kind.name() == name.trim())
                .ok_or_else(|| format!("there is no call {:?}: {help}", name.trim()))?;
            let weight =
                weight.trim().parse().ok().filter(|&weight: &u32| weight <= MAX_WEIGHT).ok_or_else(|| {
                    format!("the weight {:?} is not a number up to {MAX_WEIGHT}: {help}", weight.trim())
                })?;
            if weights[kind as usize].replace(weight).is_some() {
                return Err(format!("{} is given twice: {help}", kind.name()));
            }
        }
        let weights = weights.map(Option::unwrap_or_default);
        if weights == [0; Kind::ALL.len()] {
            return Err(format!("no call has a weight above 0: {help}"));
        }
        Ok(Self(weights))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_parsed_in_any_order() {
        assert_eq!("has=80,create=10,destroy=10".parse(), Ok(Mix([80, 10, 10])));
        assert_eq!("destroy=1, create=2".parse(), Ok(Mix([0, 2, 1])));
        for bad in ["", "has", "has=", "has=-1", "has=0", "has=1,has=2", "watch=1", "has=1,", "has=1000001"] {
            let error = bad.parse::<Mix>().unwrap_err();
            assert!(error.contains("write weights"), "{bad:?}: {error}");
        }
    }

    #[test]
    fn calls_follow_their_weights() {
        let mix: Mix = "has=8,destroy=2".parse().unwrap();
        let mut rng = Rng::with_seed(7);
        let mut counts = [0; 3];
        for _ in 0..10_000 {
            counts[mix.pick(&mut rng) as usize] += 1;
        }
        assert_eq!(counts[Kind::Create as usize], 0);
        assert!((7_700..8_300).contains(&counts[Kind::Has as usize]), "{counts:?}");
    }
}

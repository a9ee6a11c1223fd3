//! Least squares.

/// Measurements of a cost that is a sum of named parts, each of which grows with a count.
pub(crate) struct Fit<const N: usize> {
    rows: Vec<([f64; N], f64)>,
}

/// Below this cost, in seconds of processor time per second, the relative error of a measurement grows.
const PRECISE: f64 = 0.003;

impl<const N: usize> Fit<N> {
    pub(crate) fn new() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a measurement. Its relative error counts.
    pub(crate) fn add(&mut self, counts: [f64; N], cost: f64) {
        let weight = 1.0 / cost.max(PRECISE);
        self.rows.push((counts.map(|count| count * weight), cost * weight));
    }

    /// Returns the cost of one of each part. None is negative: a part that would be is left out.
    pub(crate) fn solve(&self) -> [f64; N] {
        let mut used = [true; N];
        loop {
            let costs = self.solve_with(used);
            let least = (0..N).min_by(|a, b| costs[*a].total_cmp(&costs[*b])).unwrap();
            if costs[least] >= 0.0 {
                return costs;
            }
            used[least] = false;
        }
    }

    /// Returns the median relative error of these costs.
    pub(crate) fn error(&self, costs: &[f64; N]) -> f64 {
        let of = |(counts, cost): &([f64; N], f64)| (dot(counts, costs) - cost).abs();
        let mut errors: Vec<f64> = self.rows.iter().map(of).collect();
        errors.sort_unstable_by(f64::total_cmp);
        errors[errors.len() / 2]
    }

    fn solve_with(&self, used: [bool; N]) -> [f64; N] {
        // The normal equations, by Gauss and Jordan. A part that never varies gets 0.
        let mut left = [[0.0; N]; N];
        let mut right = [0.0; N];
        for (counts, cost) in &self.rows {
            for i in (0..N).filter(|i| used[*i]) {
                right[i] += counts[i] * cost;
                for j in (0..N).filter(|j| used[*j]) {
                    left[i][j] += counts[i] * counts[j];
                }
            }
        }
        for i in 0..N {
            let pivot = left[i][i];
            if pivot.abs() < 1e-12 {
                (left[i], right[i]) = ([0.0; N], 0.0);
                left[i][i] = 1.0;
                continue;
            }
            for j in (0..N).filter(|j| *j != i) {
                let factor = left[j][i] / pivot;
                let row = left[i];
                left[j].iter_mut().zip(row).for_each(|(cell, above)| *cell -= factor * above);
                right[j] -= factor * right[i];
            }
        }
        std::array::from_fn(|i| right[i] / left[i][i])
    }
}

/// Returns the sum of the products.
pub(crate) fn dot<const N: usize>(a: &[f64; N], b: &[f64; N]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

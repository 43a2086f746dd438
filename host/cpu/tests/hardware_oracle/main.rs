//! The hardware oracle: random sequences of user-level instructions run on this processor and by the interpreter, and
//! must agree in registers, flags, SSE and x87 state, memory, and the exception that ends them.
//!
//! `CARDCAGE_ORACLE_CASES` says how many cases run, `CARDCAGE_ORACLE_SEED` with which seed; the seed is printed.
//! `CARDCAGE_ORACLE_FAILURES` lets the run go on until so many failures are found (one by default).
//! Flags that the architecture leaves undefined are not compared.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod compare;
mod context;
mod forms;
mod generate;
mod guest;
mod native;
mod operands;
mod random;

use std::collections::{BTreeMap, HashSet};

use context::{BATCH, CODE_ADDRESS, CODE_SLOT, Context, DATA_LEN, Trouble};
use generate::Case;
use guest::Guest;
use iced_x86::Code;
use native::Native;
use random::Random;

const DEFAULT_CASES: usize = 30_000;
const INT3: u8 = 0xcc;

/// One batch of cases with the data that they work on.
struct Batch {
    cases: Vec<Case>,
    data: Vec<u8>,
    read_only: Vec<u8>,
}

impl Batch {
    fn new(random: &mut Random, count: usize) -> Self {
        let fill = |random: &mut Random, len: usize| (0..len / 8).flat_map(|_| random.quad().to_le_bytes()).collect();
        let data = fill(random, DATA_LEN);
        let read_only = fill(random, 4096);
        let cases = (0..count).map(|i| Case::new(random, slot_address(i))).collect();
        Self { cases, data, read_only }
    }

    /// The code of `cases`, each in its slot, with INT3 behind it.
    fn code(cases: &[Case]) -> Vec<u8> {
        let mut code = vec![INT3; BATCH * CODE_SLOT];
        for (slot, case) in code.chunks_exact_mut(CODE_SLOT).zip(cases) {
            slot[..case.code.len()].copy_from_slice(&case.code);
        }
        code
    }

    fn inputs(cases: &[Case]) -> Vec<Context> {
        cases.iter().map(|case| case.input).collect()
    }
}

fn slot_address(index: usize) -> u64 {
    CODE_ADDRESS + (index * CODE_SLOT) as u64
}

/// A number from the environment, decimal or with `0x`.
fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(number.unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// The two processors.
struct Sides {
    native: Native,
    guest: Guest,
}

impl Sides {
    /// Runs `cases` on both sides; what differs, by case.
    fn run(&mut self, batch: &Batch, cases: &[Case]) -> Result<Vec<String>, Trouble> {
        let (code, inputs) = (Batch::code(cases), Batch::inputs(cases));
        self.native.run(&code, &batch.data, &batch.read_only, &inputs)?;
        self.guest.run(&code, &batch.data, &batch.read_only, &inputs)?;
        let first = self.compare(cases);
        self.guest.run_again()?;
        let second = self.compare(cases);
        let both = |(first, second): (String, String)| match (first.is_empty(), second.is_empty()) {
            (true, false) => format!("{second}  only the second time\n"),
            _ => first,
        };
        Ok(first.into_iter().zip(second).map(both).collect())
    }

    /// What differs after a run, by case.
    fn compare(&self, cases: &[Case]) -> Vec<String> {
        let compare = |(i, case)| {
            let (native, native_data) = self.native.output(i);
            let (guest, guest_data) = self.guest.output(i);
            compare::differences(case, (native, native_data), (&guest, &guest_data))
        };
        cases.iter().enumerate().map(compare).collect()
    }

    /// What differs for one case, in the slot that it was made for.
    fn run_alone(&mut self, batch: &Batch, index: usize, case: &Case) -> String {
        let mut cases: Vec<Case> = (0..index).map(Case::empty_at).collect();
        cases.push(case.clone());
        match self.run(batch, &cases) {
            Ok(mut differences) => differences.pop().unwrap_or_default(),
            Err(trouble) => trouble.what,
        }
    }

    /// The case with as few units and as simple registers as still show a difference; and that difference.
    fn minimise(&mut self, batch: &Batch, index: usize, difference: String) -> (Case, String) {
        let mut best = (batch.cases[index].clone(), difference);
        for unit in 0..best.0.units.len() {
            let candidate = best.0.without(unit, slot_address(index));
            let difference = self.run_alone(batch, index, &candidate);
            if !difference.is_empty() {
                best = (candidate, difference);
            }
        }
        best
    }

    fn report(&mut self, batch: &Batch, index: usize, difference: String) -> String {
        let (case, difference) = self.minimise(batch, index, difference);
        format!("{}{difference}", compare::describe(&case, &batch.data))
    }
}

/// What a run has covered.
#[derive(Default)]
struct Coverage {
    /// Instruction forms that were carried out without an exception.
    forms: HashSet<Code>,
    /// Cases by the vector that ended them.
    ends: BTreeMap<u64, usize>,
}

impl Coverage {
    fn note(&mut self, case: &Case, end: &Context) {
        *self.ends.entry(end.vector).or_default() += 1;
        let all = case.units.iter().flat_map(|unit| &unit.instructions);
        self.forms.extend(all.filter(|i| i.next_ip() <= end.rip).map(|i| i.code()));
    }
}

#[test]
fn the_interpreter_agrees_with_this_processor() {
    let cases = setting("CARDCAGE_ORACLE_CASES").map_or(DEFAULT_CASES, |cases| cases as usize);
    let seed = setting("CARDCAGE_ORACLE_SEED").unwrap_or_else(rand_seed);
    let failures_wanted = setting("CARDCAGE_ORACLE_FAILURES").unwrap_or(1) as usize;
    eprintln!("hardware oracle: {cases} cases, CARDCAGE_ORACLE_SEED={seed:#x}");
    let mut random = Random(seed);
    let mut sides = Sides { native: Native::new(), guest: Guest::new() };
    let mut reports = vec![];
    let mut done = 0;
    let mut coverage = Coverage::default();
    while done < cases && reports.len() < failures_wanted {
        let batch = Batch::new(&mut random, BATCH.min(cases - done));
        let differences = match sides.run(&batch, &batch.cases) {
            Ok(differences) => differences,
            Err(trouble) => {
                let case = batch.cases.get(trouble.case).map(|case| compare::describe(case, &batch.data));
                panic!("case {}: {}\n{}", done + trouble.case, trouble.what, case.unwrap_or_default());
            }
        };
        for (index, case) in batch.cases.iter().enumerate() {
            coverage.note(case, sides.native.output(index).0);
        }
        for (index, difference) in differences.into_iter().enumerate() {
            if !difference.is_empty() && reports.len() < failures_wanted {
                reports.push(format!("case {}:\n{}", done + index, sides.report(&batch, index, difference)));
            }
        }
        done += batch.cases.len();
    }
    let (reached, all) = (coverage.forms.len(), forms::forms().len());
    eprintln!("{done} cases, {reached} of {all} instruction forms carried out, ends by vector: {:?}", coverage.ends);
    assert!(
        reports.is_empty(),
        "{} of {done} cases with CARDCAGE_ORACLE_SEED={seed:#x} differ\n{}",
        reports.len(),
        reports.join("\n")
    );
}

/// A seed that differs from run to run.
fn rand_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

#[test]
fn all_instruction_groups_take_part() {
    let names: HashSet<String> = forms::forms().iter().map(|code| format!("{:?}", code.mnemonic())).collect();
    for name in [
        "Add",
        "Imul",
        "Div",
        "Rcl",
        "Shld",
        "Bts",
        "Cmpxchg16b",
        "Movsb",
        "Enter",
        "Jrcxz",
        "Popfq",
        "Int",
        "Hlt",
        "Out",
        "Call",
        "Fxsave",
        "Fprem",
        "Fcomi",
        "Fbstp",
        "Fnsave",
        "Paddb",
        "Maskmovdqu",
        "Cvttsd2si",
        "Shufps",
        "Ldmxcsr",
        "Emms",
        "Lahf",
    ] {
        assert!(names.contains(name), "{name} is missing");
    }
    assert!(forms::forms().len() > 800, "only {} forms", forms::forms().len());
}

#[test]
fn the_native_side_is_deterministic() {
    let mut random = Random(5);
    let batch = Batch::new(&mut random, BATCH);
    let mut native = Native::new();
    let mut run = || {
        let (code, inputs) = (Batch::code(&batch.cases), Batch::inputs(&batch.cases));
        native.run(&code, &batch.data, &batch.read_only, &inputs).map_err(|trouble| trouble.what).unwrap();
        (0..BATCH).map(|i| (*native.output(i).0, native.output(i).1.to_vec())).collect::<Vec<_>>()
    };
    let (first, second) = (run(), run());
    for ((i, a), b) in first.iter().enumerate().zip(&second) {
        let difference = compare::differences(&batch.cases[i], (&a.0, &a.1), (&b.0, &b.1));
        assert!(difference.is_empty(), "{}{difference}", compare::describe(&batch.cases[i], &batch.data));
    }
    let ends = first.iter().filter(|(context, _)| context.vector == 3).count();
    assert!(ends > BATCH / 3, "only {ends} of {BATCH} cases reach their end");
}

//! Feature gates: their names, defaults and groups (server.md 9.9).

use prometheus::Registry;

use crate::server::config::value::boolean;
use crate::server::metrics::gauge_vec;

/// How far a feature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Alpha,
    Beta,
}

/// Name, default, stage, and whether this release can do otherwise than the default.
const GATES: [(&str, bool, Stage, bool); 9] = [
    ("StopGRPCServiceOnDefrag", false, Stage::Alpha, true),
    ("InitialCorruptCheck", false, Stage::Alpha, true),
    ("CompactHashCheck", false, Stage::Alpha, true),
    // A matter of etcd's backend; here writes share nothing with readers.
    ("TxnModeWriteWithSharedBuffer", true, Stage::Beta, true),
    ("LeaseCheckpoint", false, Stage::Alpha, false),
    ("LeaseCheckpointPersist", false, Stage::Alpha, false),
    ("SetMemberLocalAddr", false, Stage::Alpha, false),
    // Leases are served by a later release, and may then be slow or fast.
    ("FastLeaseKeepAlive", true, Stage::Beta, true),
    ("PriorityRequest", false, Stage::Alpha, false),
];

/// Which gates are on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureGates {
    on: [bool; GATES.len()],
    all_alpha: bool,
    all_beta: bool,
}

impl Default for FeatureGates {
    fn default() -> FeatureGates {
        FeatureGates { on: GATES.map(|(_, default, _, _)| default), all_alpha: false, all_beta: false }
    }
}

impl FeatureGates {
    /// Reads `Name=bool,...`. Groups first, single names win over them.
    pub fn parse(text: &str) -> Result<FeatureGates, String> {
        let mut pairs = Vec::new();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let Some((name, value)) = pair.split_once('=') else {
                return Err(format!("missing bool value for {pair}"));
            };
            let (name, value) = (name.trim(), value.trim());
            if !matches!(name, "AllAlpha" | "AllBeta") && !GATES.iter().any(|gate| gate.0 == name) {
                return Err(format!("unrecognized feature gate: {name}"));
            }
            let on = boolean(value).ok_or_else(|| {
                format!("invalid value of {name}={value}, err: strconv.ParseBool: parsing \"{value}\": invalid syntax")
            })?;
            pairs.push((name, on));
        }
        let mut gates = FeatureGates::default();
        for (name, on) in &pairs {
            match *name {
                "AllAlpha" => gates.set_stage(Stage::Alpha, *on),
                "AllBeta" => gates.set_stage(Stage::Beta, *on),
                _ => (),
            }
        }
        for (name, on) in pairs {
            if let Some(index) = GATES.iter().position(|gate| gate.0 == name) {
                gates.on[index] = on;
            }
        }
        Ok(gates)
    }

    fn set_stage(&mut self, stage: Stage, on: bool) {
        match stage {
            Stage::Alpha => self.all_alpha = on,
            Stage::Beta => self.all_beta = on,
        }
        for (_, state) in GATES.iter().zip(&mut self.on).filter(|(gate, _)| gate.2 == stage) {
            *state = on;
        }
    }

    pub fn is_on(&self, name: &str) -> bool {
        GATES.iter().zip(self.on).any(|(gate, on)| gate.0 == name && on)
    }

    /// Gates that are on and that this release cannot honour.
    pub fn unserved(&self) -> Vec<&'static str> {
        let wrong = GATES.iter().zip(self.on).filter(|(gate, on)| !gate.3 && *on != gate.1);
        wrong.map(|(gate, _)| gate.0).collect()
    }

    /// Shows them as etcd does: `etcd_server_feature_enabled{name, stage}`.
    pub fn register(&self, registry: &Registry) {
        let help = "Whether or not a feature is enabled. 1 is enabled, 0 is not.";
        let family = gauge_vec(registry, "etcd_server_feature_enabled", help, &["name", "stage"]);
        let groups = [("AllAlpha", Stage::Alpha, self.all_alpha), ("AllBeta", Stage::Beta, self.all_beta)];
        let single = GATES.iter().zip(self.on).map(|(gate, on)| (gate.0, gate.2, on));
        for (name, stage, on) in single.chain(groups) {
            let stage = if stage == Stage::Alpha { "ALPHA" } else { "BETA" };
            family.with_label_values(&[name, stage]).set(i64::from(on));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_gates_win_over_groups() {
        let gates = FeatureGates::parse("InitialCorruptCheck=false,AllAlpha=true,AllBeta=false").expect("valid");
        assert!(gates.is_on("CompactHashCheck") && !gates.is_on("InitialCorruptCheck"));
        assert!(!gates.is_on("FastLeaseKeepAlive"));
        assert_eq!(FeatureGates::parse(""), Ok(FeatureGates::default()));
    }

    #[test]
    fn wrong_gates_are_named() {
        let check = |text: &str, error: &str| assert_eq!(FeatureGates::parse(text), Err(error.to_owned()));
        check("Nope=true", "unrecognized feature gate: Nope");
        check("InitialCorruptCheck", "missing bool value for InitialCorruptCheck");
        check(
            "CompactHashCheck=x",
            "invalid value of CompactHashCheck=x, err: strconv.ParseBool: parsing \"x\": invalid syntax",
        );
    }

    #[test]
    fn gates_that_are_not_served_are_found() {
        let gates = FeatureGates::parse("LeaseCheckpoint=true,InitialCorruptCheck=true").expect("valid");
        assert_eq!(gates.unserved(), ["LeaseCheckpoint"]);
        assert!(FeatureGates::default().unserved().is_empty());
    }
}

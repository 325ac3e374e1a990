//! `plan` with a purpose: looks at the cluster through Admin Router, and foresees what the controller would do. It reads only.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::{OperatorError, Service, options_file, refusal};
use crate::controller::observe;
use crate::dcos::marathon::Marathon;
use crate::dcos::mesos::Mesos;
use crate::dcos::metronome::Metronome;
use crate::forecast::{self, Changes, Forecast, Purpose};
use crate::in_order::InOrder as _;
use crate::options::{self, Fault, Faults, Options};
use crate::plan;

impl Service {
    /// What would be done. An options file is laid over the options in force; without a service, over the defaults.
    ///
    /// # Errors
    /// Options that the controller would refuse, or a cluster that does not answer.
    pub async fn foresee(&self, purpose: Purpose, file: Option<&Path>) -> Result<Forecast, OperatorError> {
        let given = file.map(options_file).transpose()?.unwrap_or(Value::Null);
        let (mesos, marathon) = (Mesos(self.cluster.under("/mesos")), Marathon(self.cluster.under("/service/marathon")));
        let metronome = Metronome(self.metronome.clone());
        let cluster = |source| refusal(source, OperatorError::Cluster);
        tracing::info!("GET /service/marathon/v2/apps/{}", self.name);
        let own = marathon.app(&format!("/{}", self.name)).await.map_err(cluster)?;
        let stored: Option<BTreeMap<String, String>> = own.as_ref().map(|app| {
            let env = app.spec["env"].as_object().into_iter().flatten();
            env.filter(|(name, _)| options::is_variable(name))
                .filter_map(|(name, v)| Some((name.clone(), v.as_str()?.to_string())))
                .in_order()
        });
        let mut vars = options::default_variables();
        unknown(&given, &vars)?;
        vars.insert(options::variable("service", "name"), self.name.clone());
        vars.extend(stored.clone().unwrap_or_default());
        let before = vars.clone();
        options::put_variables(&mut vars, &given);
        let options = match purpose {
            Purpose::Removal => Options::for_removal(&vars, &format!("/{}", self.name))?,
            _ => Options::from_env(&vars)?,
        };
        let observed = observe::services(&mesos, &marathon, &metronome, &options).await.map_err(cluster)?;
        if purpose != Purpose::Removal {
            plan::refuse(&options, &observed)?;
        }
        let changes = match (Options::from_env(&before), &stored) {
            (Ok(before), Some(_)) => Changes::between(&before, &options, &observed),
            _ => Changes::default(),
        };
        let installs = stored.is_none();
        let mut forecast = forecast::foresee(&purpose, &options, &vars, observed, changes)?;
        if purpose == Purpose::Options {
            let first = match installs {
                true => vec![format!("start the controller /{}: the package is installed", options.service.name)],
                false => restart(&before, &vars),
            };
            forecast.steps.splice(0..0, first);
            let with = file.map(|path| format!(" --options={}", path.display())).unwrap_or_default();
            forecast.notes.push(format!(
                "the controller's own app is rendered by Cosmos: dcos package describe --app --render{with} private-registry"
            ));
        }
        Ok(forecast)
    }
}

/// Which options are others, and so that the controller is started anew.
fn restart(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let differs = |(name, value): &(&String, &String)| before.get(*name) != Some(*value);
    let shown = |text: &str| if text.is_empty() { "(empty)".to_string() } else { text.to_string() };
    let change = |(name, value): (&String, &String)| {
        let option = options::option_of(name).unwrap_or_else(|| name.clone());
        // What is wrongly in such an option may be the secret itself.
        let hidden = forecast::names_a_secret(name);
        let show = |text: &str| if hidden && !text.is_empty() { forecast::REDACTED.to_string() } else { shown(text) };
        format!("{option}: {} -> {}", show(before.get(name).map_or("", String::as_str)), show(value))
    };
    let changes: Vec<String> = after.iter().filter(differs).map(change).collect();
    if changes.is_empty() { Vec::new() } else { vec![format!("restart the controller with other options: {}", changes.join("; "))] }
}

/// An option that there is not is in no variable that anybody reads.
fn unknown(given: &Value, known: &BTreeMap<String, String>) -> Result<(), Faults> {
    let mut faults = Vec::new();
    let mut fault = |field: String, value: &Value| {
        let (reason, remedy) =
            ("there is no such option".into(), "`dcos package describe --config private-registry` lists the options.".into());
        faults.push(Fault { field, value: value.to_string(), reason, remedy });
    };
    for (section, values) in given.as_object().into_iter().flatten() {
        match values.as_object() {
            Some(values) => values
                .iter()
                .filter(|(key, _)| !known.contains_key(&options::variable(section, key)))
                .for_each(|(key, value)| fault(format!("{section}.{key}"), value)),
            None => fault(section.clone(), values),
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(Faults(faults)) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_that_change_are_named_and_unknown_ones_refused() {
        let before = options::default_variables();
        let mut after = before.clone();
        let given = json!({ "names": { "vip": "" }, "storage": { "secret_key": "AKIA" } });
        options::put_variables(&mut after, &given);
        let said = restart(&before, &after).concat();
        assert!(
            said.contains("names.vip: 192.168.0.1:443 -> (empty)") && said.contains("storage.secret_key: (empty) -> <redacted>"),
            "{said}"
        );
        assert!(restart(&before, &before).is_empty());
        assert!(unknown(&given, &before).is_ok());
        let faults = unknown(&json!({ "names": { "vpi": 1 }, "nmaes": 2 }), &before).unwrap_err();
        assert_eq!(faults.0.iter().map(|fault| fault.field.as_str()).collect::<Vec<_>>(), ["names.vpi", "nmaes"]);
    }
}

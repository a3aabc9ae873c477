//! A backend of one's own: prints what the node would do. `own_backend [FILE]`; change the file, and
//! see.
#![expect(clippy::print_stdout, reason = "it prints instead of programming a kernel")]

use kpng_core::backend::{Backend, BackendError};
use kpng_core::model::NamespacedName;
use kpng_core::plan::{NodeFacts, Plan, Planner};
use kpng_core::store::Store;

struct Print;

impl Backend for Print {
    fn sync(
        &mut self,
        plan: &Plan,
        changed: Option<&[NamespacedName]>,
    ) -> Result<(), BackendError> {
        let all = || plan.services().keys().cloned().collect();
        for key in changed.map_or_else(all, <[_]>::to_vec) {
            let Some(service) = plan.service(&key) else {
                println!("{key} is gone");
                continue;
            };
            println!("{key}");
            for frontend in &service.frontends {
                println!("  {} from outside: {:?}", frontend.key(), frontend.route.outside);
            }
            for (number, pool) in service.pools.iter().enumerate() {
                let targets = pool.targets.iter();
                let targets: Vec<_> = targets.map(|t| (t.address, t.port)).collect();
                println!("  pool {number}: {targets:?}");
            }
        }
        Ok(())
    }

    fn cleanup(&mut self) -> Result<(), BackendError> {
        Ok(()) // printed is printed
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BackendError> {
    let path = std::env::args_os().nth(1).unwrap_or_else(|| "examples/cluster.yaml".into());
    let (mut writer, store) = Store::new();
    let options = kpng_file::Options::default();
    let interrupted = async { tokio::signal::ctrl_c().await.unwrap_or(()) };
    let file = kpng_file::run(path.as_ref(), &options, &mut writer, interrupted);
    let print = async {
        let (mut reader, mut backend) = (store.reader(), Print);
        let mut planner = Planner::new("node-a", NodeFacts::default());
        while let Some(update) = reader.next().await {
            let changes = planner.update(&update);
            backend.sync(planner.plan(), Some(&changes.services))?;
        }
        Ok(())
    };
    tokio::select! {
        ended = file => Ok(ended?),
        printed = print => printed,
    }
}

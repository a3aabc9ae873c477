//! The conformance table, by the plan itself.

use kpng_testkit::cases::CASES;
use kpng_testkit::conformance::check_plan;

#[test]
fn the_plan_decides_every_case_as_it_must() {
    CASES.iter().for_each(check_plan);
}

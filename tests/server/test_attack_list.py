"""What breaks servers: each rule with the tests that hold it. `test_the_tests_are_there` reads this very table.

no middleware that hides disconnects
    tests/server/test_hostile_requests.py::test_no_middleware_hides_disconnects
    tests/server/test_streaming.py::test_clients_that_leave_at_any_point_leave_nothing_behind
    tests/server/test_streaming.py::test_a_slow_reader_is_given_up
heads and bodies in time, and within bounds
    tests/server/test_connection.py::test_a_head_that_does_not_come
    tests/server/test_connection.py::test_a_body_that_does_not_come
    tests/server/test_attacks.py::test_a_head_that_drips
    tests/server/test_attacks.py::test_a_body_that_drips
    tests/server/test_bounds.py::test_how_many_headers_there_may_be
    tests/server/test_bounds.py::test_how_large_headers_may_be
    tests/server/test_bounds.py::test_how_large_a_body_may_be
    tests/server/test_bounds.py::test_how_deep_a_body_may_be
    tests/server/test_attacks.py::test_a_body_two_thousand_levels_deep
    tests/server/test_attacks.py::test_lengths_that_two_servers_could_read_differently
keys are compared in constant time, and everything is closed by default
    tests/server/test_keys.py::test_a_key_is_compared_with_every_other
    tests/server/test_auth.py::test_every_route_is_behind_a_key_or_on_the_public_list
    tests/server/test_attacks.py::test_no_spelling_of_a_path_gets_in_without_a_key
    tests/server/test_attacks.py::test_the_path_decides_and_nothing_around_it
    tests/server/test_attacks.py::test_a_forged_host_opens_nothing
this machine only, its own names only, no pages
    tests/server/test_hosts.py::test_an_open_server_for_other_machines_has_to_be_meant
    tests/server/test_hosts.py::test_other_names
    tests/server/test_hosts.py::test_by_default_no_page
    tests/server/test_attacks.py::test_dns_rebinding
    tests/server/test_attacks.py::test_a_page_elsewhere_cannot_post_without_asking
    tests/server/test_auth.py::test_an_admin_route_names_what_it_needs
token ids in the vocabulary, numbers finite and in their range
    tests/server/test_bounds.py::test_a_bound_of_a_completion
    tests/server/test_bounds.py::test_tokens_to_decode_are_in_the_vocabulary
    tests/server/test_errors.py::test_malformed_json
    tests/server/test_errors.py::test_values_of_the_wrong_type_or_range
    tests/integration/test_engine_process.py::test_a_token_outside_the_vocabulary_is_refused
chat templates in a sandbox, with variables from a list, within a size and a time
    tests/server/test_hostile_requests.py::test_a_template_in_a_message_is_text
    tests/server/test_hostile_requests.py::test_a_template_of_the_requests_own_is_refused
    tests/server/test_hostile_requests.py::test_variables_that_are_the_servers_cannot_be_set
    tests/server/test_hostile_requests.py::test_a_conversation_too_long_for_the_window_is_not_tokenized
    tests/engine/test_tokenizer.py::test_templates_that_fail_are_the_requests_fault
    tests/engine/test_tokenizer.py::test_templates_are_bounded_in_size_and_time
grammars of a bounded size and depth, tried where they can be killed
    tests/server/test_structured.py::test_what_is_refused
    tests/engine/test_grammar_trial.py::test_a_grammar_made_to_cost_does_not
    tests/engine/test_grammar_trial.py::test_one_that_takes_too_long_is_given_up_and_the_next_is_served
    tests/engine/test_grammars.py::test_compiled_grammars_are_kept_within_a_bound
    tests/engine/test_grammars.py::test_an_output_that_breaks_the_grammar_fails_alone
fan-out, log-probabilities and stop lists are bounded
    tests/server/test_bounds.py::test_sequences_are_counted_over_all_prompts
    tests/server/test_hostile_requests.py::test_every_way_to_multiply_is_counted
    tests/engine/test_core.py::test_a_scored_prompt_never_has_all_its_logits_at_once
    tests/server/test_bounds.py::test_no_bound_is_left_out
what others asked is not told by the cache
    tests/integration/test_tenants.py::test_only_keys_of_one_tenant_share_what_is_cached
    tests/block_manager/test_manager.py::test_tenants_never_share_blocks
    tests/block_manager/test_hashing.py::test_nobody_can_compute_a_hash_without_the_key
model folders hold weights and no code
    tests/models/test_shape.py::test_remote_code_is_refused_unless_asked_for
    tests/models/test_checkpoint.py::test_git_lfs_pointer
    tests/models/test_checkpoint.py::test_pickled_weights_are_refused_with_advice
one bad request ends neither the engine nor the metrics
    tests/engine/test_core.py::test_one_bad_request_fails_alone
    tests/server/test_models_and_health.py::test_exporting_never_raises
    tests/server/test_fuzz.py::test_nothing_that_the_document_allows_or_forbids_breaks_the_server
request ids are checked, echoed, and never the engine's
    tests/server/test_errors.py::test_the_clients_request_id_comes_back
    tests/server/test_errors.py::test_a_malformed_request_id_is_replaced
    tests/server/test_errors.py::test_internal_ids_are_never_the_clients
text only, and nothing is fetched
    tests/server/test_chat.py::test_messages_that_are_refused
    tests/server/test_hostile_requests.py::test_nothing_is_fetched_for_a_request
prompts are not logged
    tests/server/test_hostile_requests.py::test_what_is_asked_is_not_logged
    tests/server/test_hostile_requests.py::test_a_name_in_the_log_cannot_begin_a_line
    tests/server/test_attacks.py::test_keys_are_neither_echoed_nor_logged
"""

from __future__ import annotations

import ast
import re
from pathlib import Path


def test_the_tests_are_there(tests_folder: Path) -> None:
    named = re.findall(r"(tests/\S+\.py)::(\w+)", __doc__ or "")
    assert len(named) == len(set(named)) == (__doc__ or "").count("::")
    found = {file: names_in(tests_folder.parent / file) for file, _ in named}
    assert [(file, name) for file, name in named if name not in found[file]] == []


def names_in(file: Path) -> set[str]:
    body = ast.parse(file.read_text()).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
